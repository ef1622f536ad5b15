//! Writing safetensors files of any types, byte for byte as `tests/golden/make_tiny.py` writes them.

use serde_json::{Value, json};

/// A tensor of any type.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Name.
    pub name: String,
    /// Type as the header names it.
    pub dtype: &'static str,
    /// Rows first.
    pub shape: Vec<usize>,
    /// The data.
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// A tensor.
    pub fn new(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> RawTensor {
        RawTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }
}

/// A file of these tensors, in this order.
pub fn raw_file(tensors: &[RawTensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes.len();
        header.insert(tensor.name.clone(), json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    tensors.iter().for_each(|tensor| file.extend(&tensor.bytes));
    file
}
