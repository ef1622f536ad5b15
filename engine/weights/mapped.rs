//! Bytes of a checkpoint: a range of a memory-mapped file, or an owned buffer. Cloning shares.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{EngineError, Result};

/// A shared, immutable range of bytes.
#[derive(Clone)]
pub struct MappedBytes {
    source: Source,
    start: usize,
    len: usize,
}

#[derive(Clone)]
enum Source {
    Map(Arc<MappedFile>),
    /// 8-byte words, so that any element type is aligned at the start.
    Owned(Arc<Vec<u64>>),
}

/// A mapping with its file, which can also be read past the mapping.
struct MappedFile {
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
}

impl MappedBytes {
    /// Maps a whole file read-only.
    ///
    /// # Errors
    /// What `open` or `mmap` answer.
    pub fn open(path: &Path) -> std::io::Result<MappedBytes> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private; that nobody truncates a checkpoint while it is served is the operator's part.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        let len = map.len();
        Ok(MappedBytes { source: Source::Map(Arc::new(MappedFile { map, file, path: path.to_path_buf() })), start: 0, len })
    }

    /// dst = the bytes from `start` on. Reads the file where there is one: for bytes that are wanted once, that is cheaper than to map them
    /// page by page, and they do not stay in this process.
    ///
    /// # Errors
    /// `Io`: the file became shorter since it was opened, or what the disk answers.
    pub fn copy_to(&self, start: usize, dst: &mut [u8]) -> Result<()> {
        assert!(start.checked_add(dst.len()).is_some_and(|end| end <= self.len), "range {start}+{} of {} bytes", dst.len(), self.len);
        #[cfg(unix)]
        if let Source::Map(source) = &self.source {
            use std::os::unix::fs::FileExt as _;
            let read = source.file.read_exact_at(dst, (self.start + start) as u64);
            return read.map_err(|error| EngineError::Io { path: source.path.clone(), source: error });
        }
        dst.copy_from_slice(&self.as_slice()[start..start + dst.len()]);
        Ok(())
    }

    /// Owns a copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> MappedBytes {
        MappedBytes::build(bytes.len(), |own| own.copy_from_slice(bytes))
    }

    /// Owns `len` bytes that `fill` writes; they are zero before.
    pub fn build(len: usize, fill: impl FnOnce(&mut [u8])) -> MappedBytes {
        let mut words = vec![0u64; len.div_ceil(8)];
        fill(&mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..len]);
        MappedBytes { source: Source::Owned(Arc::new(words)), start: 0, len }
    }

    /// The sub-range `start .. start + len` of this range.
    pub fn slice(&self, start: usize, len: usize) -> MappedBytes {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "range {start}+{len} of {} bytes", self.len);
        MappedBytes { source: self.source.clone(), start: self.start + start, len }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let whole: &[u8] = match &self.source {
            Source::Map(source) => &source.map,
            Source::Owned(words) => bytemuck::cast_slice(words),
        };
        &whole[self.start..self.start + self.len]
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_what_the_mapping_shows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bytes");
        let content: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        std::fs::write(&path, &content).expect("written");
        for bytes in [MappedBytes::open(&path).expect("opened"), MappedBytes::from_slice(&content)] {
            let part = bytes.slice(1000, 8000);
            let mut copy = vec![0; 5000];
            part.copy_to(3000, &mut copy).expect("copied");
            assert_eq!((&copy[..], part.as_slice()), (&content[4000..9000], &content[1000..9000]));
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_became_shorter_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bytes");
        std::fs::write(&path, vec![1; 10_000]).expect("written");
        let bytes = MappedBytes::open(&path).expect("opened");
        File::options().write(true).open(&path).and_then(|file| file.set_len(6000)).expect("cut");
        let mut copy = vec![0; 5000];
        bytes.copy_to(1000, &mut copy).expect("the part that is still there");
        let error = bytes.copy_to(2000, &mut copy).expect_err("cut off").to_string();
        assert!(error.contains("bytes: ") && error.contains("fill"), "{error}");
    }
}
