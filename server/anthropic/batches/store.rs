//! The files of batches. One folder a batch: `requests.jsonl` as sent, `batch.json` with its times, `results.jsonl` as results come.
//!
//! A batch is written beside and then renamed, so a folder is a whole batch. Times are replaced as a whole. A line of results that a crash
//! cut is dropped, and its request runs again.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::batch::{Batch, Counts, State};
use crate::ids::{new_id, unix_time};

/// Seconds that a batch may take.
const LIFETIME_S: u64 = 24 * 3600;
/// Seconds that an ended batch is kept.
const RETENTION_S: u64 = 29 * 24 * 3600;
const LOCK: &str = "lock";
const REQUESTS: &str = "requests.jsonl";
const TIMES: &str = "batch.json";
/// File of the results.
pub(super) const RESULTS: &str = "results.jsonl";
const PREFIX: &str = "msgbatch_";

/// The process that has a folder, as far as it told.
pub(super) fn holder(folder: &Path) -> Option<u32> {
    fs::read_to_string(folder.join(LOCK)).ok()?.trim().parse().ok()
}

/// One request of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) custom_id: String,
    /// Body of `/v1/messages`.
    pub(super) params: Value,
}

/// Times of a batch, seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) created: u64,
    pub(super) expires: u64,
    pub(super) canceled: Option<u64>,
    pub(super) ended: Option<u64>,
}

/// The folder of all batches.
#[derive(Clone)]
pub(super) struct Store {
    folder: PathBuf,
    /// Held: no other process runs these batches.
    _lock: Arc<File>,
}

impl Store {
    /// The folder, made if it is not there. `WouldBlock`: another process has it.
    pub(super) fn open(folder: &Path) -> io::Result<Store> {
        fs::create_dir_all(folder)?;
        // Not emptied before it is ours: it names the process that has the folder.
        let mut lock = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(LOCK))?;
        lock.try_lock().map_err(io::Error::from)?;
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;
        Ok(Store { folder: folder.to_owned(), _lock: Arc::new(lock) })
    }

    /// Keeps a new batch.
    pub(super) fn create(&self, entries: Vec<Entry>) -> io::Result<Batch> {
        let id = new_id(PREFIX);
        let beside = self.folder.join(format!(".new-{id}"));
        fs::create_dir(&beside)?;
        let created = unix_time();
        let times = Times { created, expires: created + LIFETIME_S, canceled: None, ended: None };
        write_requests(&beside.join(REQUESTS), &entries)?;
        write_times(&beside, &times)?;
        File::create(beside.join(RESULTS))?;
        let folder = self.folder.join(&id);
        fs::rename(&beside, &folder)?;
        let results = Some(appending(&folder)?);
        Ok(Batch::new(id, folder, entries.len(), State { times, counts: Counts::default(), results, pending: entries }))
    }

    /// The batches of earlier processes, oldest first. What is too old or was not finished being written is removed; what cannot be read is
    /// left alone and said in the log.
    pub(super) fn load(&self) -> io::Result<Vec<Batch>> {
        let mut batches = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if name.starts_with(".new-") {
                fs::remove_dir_all(&folder)?;
            } else if name.starts_with(PREFIX) {
                match load_batch(name, &folder) {
                    Ok(Some(batch)) => batches.push(batch),
                    Ok(None) => fs::remove_dir_all(&folder)?,
                    Err(error) => tracing::error!(folder = %folder.display(), %error, "a message batch could not be read"),
                }
            }
        }
        batches.sort_by(|a, b| (a.created(), a.id()).cmp(&(b.created(), b.id())));
        Ok(batches)
    }

    /// Forgets a batch.
    pub(super) fn remove(&self, batch: &Batch) -> io::Result<()> {
        fs::remove_dir_all(batch.folder())
    }
}

/// None: it ended too long ago.
fn load_batch(id: String, folder: &Path) -> io::Result<Option<Batch>> {
    let times = read_times(folder)?;
    if times.ended.is_some_and(|ended| unix_time() > ended + RETENTION_S) {
        return Ok(None);
    }
    let (done, counts) = read_results(&folder.join(RESULTS))?;
    let mut entries = read_requests(&folder.join(REQUESTS))?;
    let num_requests = entries.len();
    entries.retain(|entry| !done.contains(&entry.custom_id));
    let (results, pending) = match times.ended {
        Some(_) => (None, Vec::new()),
        None => (Some(appending(folder)?), entries),
    };
    Ok(Some(Batch::new(id, folder.to_owned(), num_requests, State { times, counts, results, pending })))
}

fn appending(folder: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(folder.join(RESULTS))
}

fn write_requests(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for entry in entries {
        writeln!(file, "{}", json!({"custom_id": entry.custom_id, "params": entry.params}))?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn read_requests(path: &Path) -> io::Result<Vec<Entry>> {
    let line = |line: io::Result<String>| {
        let mut value: Value = serde_json::from_str(&line?)?;
        let custom_id = value["custom_id"].as_str().ok_or_else(|| io::Error::other("a request without custom_id"))?.to_owned();
        Ok(Entry { custom_id, params: value["params"].take() })
    };
    BufReader::new(File::open(path)?).lines().map(line).collect()
}

/// Requests that have a result. A last line without its end is cut off the file.
fn read_results(path: &Path) -> io::Result<(HashSet<String>, Counts)> {
    let (mut done, mut counts, mut whole_bytes) = (HashSet::new(), Counts::default(), 0);
    let mut file = BufReader::new(File::open(path)?);
    let mut line = String::new();
    while file.read_line(&mut line)? > 0 && line.ends_with('\n') {
        let value: Value = serde_json::from_str(&line)?;
        counts.note(value["result"]["type"].as_str().unwrap_or_default());
        done.insert(value["custom_id"].as_str().unwrap_or_default().to_owned());
        whole_bytes += line.len() as u64;
        line.clear();
    }
    if fs::metadata(path)?.len() > whole_bytes {
        OpenOptions::new().write(true).open(path)?.set_len(whole_bytes)?;
    }
    Ok((done, counts))
}

/// Replaces the times of a batch.
pub(super) fn write_times(folder: &Path, times: &Times) -> io::Result<()> {
    let Times { created, expires, canceled, ended } = times;
    let beside = folder.join(".new-times");
    let mut file = File::create(&beside)?;
    write!(file, "{}", json!({"created": created, "expires": expires, "canceled": canceled, "ended": ended}))?;
    file.sync_all()?;
    fs::rename(beside, folder.join(TIMES))
}

fn read_times(folder: &Path) -> io::Result<Times> {
    let value: Value = serde_json::from_slice(&fs::read(folder.join(TIMES))?)?;
    let time = |name: &str| value[name].as_u64().ok_or_else(|| io::Error::other(format!("{TIMES}: no {name}")));
    Ok(Times { created: time("created")?, expires: time("expires")?, canceled: value["canceled"].as_u64(), ended: value["ended"].as_u64() })
}
