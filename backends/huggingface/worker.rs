//! `Worker`: the process that computes. Started with one end of a Unix socket as its standard input, watched, started again after a crash.

use std::io::{BufRead as _, BufReader};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use super::frame::{self, Answer, Forward, Load, Loaded, Question};

/// Name of the worker's binary, which lies beside pagoda's own.
const BINARY: &str = "pagoda-hf-worker";

/// What went wrong with a worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// There is no such program.
    #[error(
        "{}: cannot be started: {reason}; the worker is built with `cargo build --manifest-path huggingface/Cargo.toml`, and --hf-worker (HF_WORKER) says where it is",
        program.display()
    )]
    Start {
        /// The worker's binary.
        program: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// It ended without being asked to.
    #[error("the huggingface worker ended: {0}")]
    Ended(String),
    /// It says that something cannot be done.
    #[error("{0}")]
    Failed(String),
}

/// How to start a worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerSettings {
    /// Its binary.
    pub program: PathBuf,
    /// Compute threads; None: all cores.
    pub threads: Option<usize>,
    /// The model.
    pub load: Load,
}

/// Where the worker's binary is: where the user says, else beside this program.
pub(super) fn program(wanted: Option<&Path>) -> PathBuf {
    let beside = || std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(BINARY)));
    wanted.map(Path::to_owned).or_else(beside).unwrap_or_else(|| PathBuf::from(BINARY))
}

/// A worker with its model.
pub(super) struct Worker {
    settings: WorkerSettings,
    /// None: it ended.
    running: Option<Running>,
    /// What it loaded first.
    pub loaded: Loaded,
}

/// A running process. Ends with its owner.
struct Running {
    child: Child,
    socket: UnixStream,
    last_words: Arc<Mutex<String>>,
}

impl Worker {
    /// Starts a worker and waits until its model is loaded; `progress` gets (layers done, layers in all).
    ///
    /// # Errors
    /// It cannot be started, or refuses the model.
    pub fn start(settings: WorkerSettings, progress: &mut dyn FnMut(usize, usize)) -> Result<Worker, WorkerError> {
        let (running, loaded) = Running::start(&settings, progress)?;
        Ok(Worker { settings, running: Some(running), loaded })
    }

    /// Starts another process with the same model, in place of one that has ended.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_again(&mut self) -> Result<(), WorkerError> {
        tracing::warn!("starting the huggingface worker again");
        self.running = Some(Running::start(&self.settings, &mut |_, _| {})?.0);
        Ok(())
    }

    /// Logits of the rows that `forward` wants, one row after another.
    ///
    /// # Errors
    /// It ended, or refuses.
    pub fn forward(&mut self, forward: &Forward, tokens: &[u32]) -> Result<Vec<f32>, WorkerError> {
        let Some(running) = &mut self.running else { return Err(WorkerError::Ended("before".into())) };
        let tokens: Vec<[u8; 4]> = tokens.iter().map(|token| token.to_le_bytes()).collect();
        let num_values = forward.rows.len() * self.loaded.vocab_size;
        let sent = frame::write(&mut running.socket, &Question::Forward(forward.clone()), &tokens);
        match sent.and_then(|()| frame::read::<Answer>(&mut running.socket)) {
            Ok((Answer::Failed { message }, _)) => Err(WorkerError::Failed(message)),
            Ok((Answer::Logits, bytes)) if bytes.len() == 4 * num_values => Ok(floats(&bytes)),
            Ok((answer, _)) => Err(WorkerError::Failed(format!("the worker answered {answer:?} to a question for logits"))),
            Err(_) => Err(WorkerError::Ended(self.lose())),
        }
    }

    /// Lets go of a worker that has ended; why it did.
    fn lose(&mut self) -> String {
        let Some(running) = self.running.take() else { return "before".into() };
        let reason = running.reason();
        tracing::error!(reason, "the huggingface worker ended");
        reason
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let words = frame::words(bytes).expect("the length was checked");
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

impl Running {
    fn start(settings: &WorkerSettings, progress: &mut dyn FnMut(usize, usize)) -> Result<(Running, Loaded), WorkerError> {
        let failed = |reason: std::io::Error| WorkerError::Start { program: settings.program.clone(), reason: reason.to_string() };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&settings.program);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(threads) = settings.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        let mut child = command.spawn().map_err(failed)?;
        // The command holds the other end of the socket, which is to be the worker's alone.
        drop(command);
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            log(stderr, last_words.clone());
        }
        let mut running = Running { child, socket, last_words };
        let asked = frame::write(&mut running.socket, &Question::Load(settings.load.clone()), &[]);
        let mut answer = asked.and_then(|()| frame::read::<Answer>(&mut running.socket));
        loop {
            match answer {
                Ok((Answer::Progress { done, total }, _)) => progress(done, total),
                Ok((Answer::Loaded(loaded), _)) => return Ok((running, loaded)),
                Ok((Answer::Failed { message }, _)) => return Err(WorkerError::Failed(message)),
                Ok((Answer::Logits, _)) => return Err(WorkerError::Failed("the worker answered a load with logits".into())),
                Err(_) => return Err(WorkerError::Ended(running.reason())),
            }
            answer = frame::read::<Answer>(&mut running.socket);
        }
    }

    /// Why it ended: its status and the last line it wrote.
    fn reason(mut self) -> String {
        // Its socket may have closed before the process was gone.
        let _ = self.socket.shutdown(Shutdown::Both);
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if words.is_empty() { status } else { format!("{status}: {words}") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has nothing to save. Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes a worker's lines on into the log, and keeps the last one.
fn log(stderr: ChildStderr, last_words: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
            tracing::warn!(line, "huggingface worker");
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
        }
    });
}
