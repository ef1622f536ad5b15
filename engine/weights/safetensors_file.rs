//! Writing a safetensors file of tensors that are made one after the other: the header first, then the data as it comes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

/// A tensor to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Name.
    pub name: String,
    /// Type as the header names it.
    pub dtype: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub len: usize,
}

impl Outline {
    /// A tensor of `len` bytes.
    pub fn new(name: String, dtype: &str, shape: &[usize], len: usize) -> Outline {
        Outline { name, dtype: dtype.to_owned(), shape: shape.to_vec(), len }
    }
}

/// A file whose tensors are written in the order of their outlines.
pub struct Writer {
    file: BufWriter<File>,
    lens: std::vec::IntoIter<usize>,
}

impl Writer {
    /// Makes the file and writes its header.
    ///
    /// # Errors
    /// What the system answers.
    pub fn create(path: &Path, outlines: &[Outline]) -> std::io::Result<Writer> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut end = 0;
        for Outline { name, dtype, shape, len } in outlines {
            let start = end;
            end += len;
            header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
        }
        let mut text = Value::Object(header).to_string();
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(text.as_bytes())?;
        let lens: Vec<usize> = outlines.iter().map(|outline| outline.len).collect();
        Ok(Writer { file, lens: lens.into_iter() })
    }

    /// Writes the data of the next tensor.
    ///
    /// # Errors
    /// What the system answers.
    pub fn push(&mut self, data: &[u8]) -> std::io::Result<()> {
        assert_eq!(self.lens.next(), Some(data.len()), "bytes of the next tensor");
        self.file.write_all(data)
    }

    /// Ends the file, on the disk.
    ///
    /// # Errors
    /// What the system answers.
    pub fn finish(mut self) -> std::io::Result<()> {
        assert_eq!(self.lens.next(), None, "every tensor was written");
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}
