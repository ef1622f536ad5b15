//! One matrix out of arbitrary bytes, for fuzzing and tests: the whole way from a configuration and a file to dequantised rows.

use std::path::Path;

use serde_json::Value;

use super::config::parse;
use super::find;
use crate::device::HostMatrix;
use crate::weights::json::Fields;
use crate::weights::mapped::MappedBytes;
use crate::weights::safetensors::tensors_of;
use crate::weights::store::TensorStore;

/// Reads the matrix `x` of shape `[n, k]` from a safetensors file's bytes; `config` is the JSON of a quantization_config, or nothing. The
/// first and the last row in f32, or what is wrong.
///
/// # Errors
/// What is wrong with the configuration or a tensor.
pub fn read_matrix(config: &[u8], file: &[u8], n: usize, k: usize) -> Result<[Vec<f32>; 2], String> {
    let path = Path::new("input");
    let config = match serde_json::from_slice(config) {
        Ok(Value::Object(map)) => Some(parse(&Fields::new(path, map), None).map_err(|error| error.to_string())?),
        _ => None,
    };
    let mut store = TensorStore::default();
    for (name, tensor) in tensors_of(&mut store, path, &MappedBytes::from_slice(file))? {
        store.tensors.insert(name.into(), tensor);
    }
    let source = find(&store, config.as_ref(), "x", n, k).map_err(|error| error.to_string())?;
    let matrix: HostMatrix = source.read().map_err(|error| error.to_string())?;
    assert_eq!((matrix.n(), matrix.k()), (n, k), "the shape that was asked for");
    let row = |row: usize| {
        let mut values = vec![0.0; k];
        matrix.dequantize_row(row, &mut values);
        values
    };
    Ok([row(0), row(n - 1)])
}
