//! GGUF v2 and v3 files: a bounded parser from bytes to metadata and a tensor table.
//!
//! Layout after the GGUF specification (ggml-org/ggml, MIT): header, key-value pairs, tensor infos, padding to the alignment, data.
//! All arithmetic on sizes is checked; nothing is allocated that the bytes at hand do not pay for.

use std::collections::HashMap;

use super::format::WeightFormat;

const MAGIC: &[u8; 4] = b"GGUF";
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
const MAX_ARRAY: u64 = 1 << 24;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value. Integers of any width are one variant, so are floats.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Any integer type.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Array of integers.
    Ints(Vec<i64>),
    /// Array of floats.
    Floats(Vec<f32>),
    /// Array of booleans.
    Bools(Vec<bool>),
    /// Array of strings.
    Texts(Vec<String>),
}

/// A tensor of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Name, as `blk.0.attn_q.weight`.
    pub name: String,
    /// Rows first (GGUF stores them columns first).
    pub shape: Vec<usize>,
    /// Block format.
    pub format: WeightFormat,
    /// First byte in the file.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

/// A parsed file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gguf {
    /// Metadata by key.
    pub metadata: HashMap<String, GgufValue>,
    /// Tensors in file order.
    pub tensors: Vec<GgufTensor>,
}

type Parsed<T> = Result<T, String>;

/// Parses a whole file. Pure; accepts any bytes.
///
/// # Errors
/// What is wrong, naming the key or tensor. Ranges of an accepted file lie within `bytes` and do not overlap.
pub fn parse(bytes: &[u8]) -> Parsed<Gguf> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != MAGIC {
        return Err("does not begin with `GGUF`".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => return Err("is a big-endian GGUF file, which is not read".into()),
        version => return Err(format!("is GGUF version {version}, expected 2 or 3")),
    }
    let num_tensors = bounded(cursor.u64()?, MAX_TENSORS, "tensors")?;
    let num_keys = bounded(cursor.u64()?, MAX_KEYS, "metadata keys")?;
    let mut metadata = HashMap::new();
    for _ in 0..num_keys {
        let key = cursor.name("key")?;
        let value = cursor.value().map_err(|reason| format!("key `{key}`: {reason}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("key `{key}` occurs twice"));
        }
        metadata.insert(key, value);
    }
    let mut tensors = Vec::new();
    for _ in 0..num_tensors {
        tensors.push(cursor.tensor()?);
    }
    let alignment = alignment(&metadata)?;
    let data_start = cursor.at.checked_next_multiple_of(alignment).ok_or("is too long")?;
    place(&mut tensors, data_start, alignment, bytes.len())?;
    Ok(Gguf { metadata, tensors })
}

fn bounded(count: u64, max: u64, what: &str) -> Parsed<u64> {
    if count > max { Err(format!("says it has {count} {what}, at most {max} are read")) } else { Ok(count) }
}

fn alignment(metadata: &HashMap<String, GgufValue>) -> Parsed<usize> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT as usize),
        Some(GgufValue::Int(value)) if *value > 0 && *value <= i128::from(MAX_ALIGNMENT) && (*value as u64).is_power_of_two() => {
            Ok(*value as usize)
        }
        Some(other) => Err(format!("key `general.alignment` is {other:?}, expected a power of two")),
    }
}

/// Turns offsets into ranges of the file and checks that they lie in it, side by side.
fn place(tensors: &mut [GgufTensor], data_start: usize, alignment: usize, file_len: usize) -> Parsed<()> {
    for tensor in tensors.iter_mut() {
        if !tensor.start.is_multiple_of(alignment) {
            return Err(format!("tensor `{}`: offset {} is no multiple of the alignment {alignment}", tensor.name, tensor.start));
        }
        let start = data_start.checked_add(tensor.start);
        match start.and_then(|start| Some((start, start.checked_add(tensor.len)?))) {
            Some((start, end)) if end <= file_len => tensor.start = start,
            _ => {
                let (name, offset, len) = (&tensor.name, tensor.start, tensor.len);
                return Err(format!("tensor `{name}`: {len} bytes at {data_start}+{offset} of a file of {file_len} (truncated file?)"));
            }
        }
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| (tensor.start, tensor.len));
    for pair in order.windows(2) {
        if pair[1].start < pair[0].start + pair[0].len {
            return Err(format!("tensor `{}`: starts at {} inside `{}`", pair[1].name, pair[1].start, pair[0].name));
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("tensor `{}` occurs twice", pair[0])),
        None => Ok(()),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("ends at byte {}, {len} more are needed at {} (truncated file?)", self.bytes.len(), self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Parsed<String> {
        let len = usize::try_from(self.u64()?).map_err(|_| "string length does not fit".to_owned())?;
        // Vocabularies of old files hold invalid UTF-8 in byte tokens; those must not make the file unreadable.
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn name(&mut self, what: &str) -> Parsed<String> {
        let name = self.text()?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(format!("{what} of {} bytes at {}, expected 1 to {MAX_NAME_BYTES}", name.len(), self.at));
        }
        Ok(name)
    }

    fn value(&mut self) -> Parsed<GgufValue> {
        let kind = self.u32()?;
        match kind {
            6 | 12 => self.float(kind).map(GgufValue::Float),
            7 => self.flag().map(GgufValue::Bool),
            8 => self.text().map(GgufValue::Text),
            9 => self.list(),
            _ => self.int(kind).map(GgufValue::Int),
        }
    }

    fn int(&mut self, kind: u32) -> Parsed<i128> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            other => return Err(format!("has unknown type {other}")),
        })
    }

    fn float(&mut self, kind: u32) -> Parsed<f64> {
        if kind == 6 { self.array().map(|b| f32::from_le_bytes(b).into()) } else { self.array().map(f64::from_le_bytes) }
    }

    fn flag(&mut self) -> Parsed<bool> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("boolean of {other}")),
        }
    }

    /// Elements are read one by one, so a false count fails at the end of the file before it takes memory.
    fn list(&mut self) -> Parsed<GgufValue> {
        let kind = self.u32()?;
        let count = bounded(self.u64()?, MAX_ARRAY, "array entries")?;
        let each = 0..count;
        match kind {
            6 | 12 => each.map(|_| self.float(kind).map(|x| x as f32)).collect::<Parsed<_>>().map(GgufValue::Floats),
            7 => each.map(|_| self.flag()).collect::<Parsed<_>>().map(GgufValue::Bools),
            8 => each.map(|_| self.text()).collect::<Parsed<_>>().map(GgufValue::Texts),
            9 => Err("array of arrays".into()),
            _ => {
                let wide = |value: i128| i64::try_from(value).map_err(|_| format!("array entry {value}"));
                each.map(|_| self.int(kind).and_then(wide)).collect::<Parsed<_>>().map(GgufValue::Ints)
            }
        }
    }

    fn tensor(&mut self) -> Parsed<GgufTensor> {
        let name = self.name("tensor name")?;
        let num_dims = self.u32()?;
        if num_dims == 0 || num_dims > MAX_DIMS {
            return Err(format!("tensor `{name}`: {num_dims} dimensions, expected 1 to {MAX_DIMS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dims {
            let dim = self.u64()?;
            let dim = usize::try_from(dim).ok().filter(|dim| *dim > 0);
            shape.push(dim.ok_or_else(|| format!("tensor `{name}`: a dimension is zero or too large"))?);
        }
        shape.reverse();
        let kind = self.u32()?;
        let format = format_of(kind).map_err(|kind| format!("tensor `{name}`: type {kind} is not supported"))?;
        let (values, block_bytes) = format.block();
        let columns = shape[shape.len() - 1];
        if !columns.is_multiple_of(values) {
            return Err(format!("tensor `{name}`: rows of {columns} are no multiple of the {values} values of a {format:?} block"));
        }
        let blocks = shape[..shape.len() - 1].iter().try_fold(columns / values, |blocks, dim| blocks.checked_mul(*dim));
        let len = blocks.and_then(|blocks| blocks.checked_mul(block_bytes)).ok_or_else(|| format!("tensor `{name}`: is too large"))?;
        let start = usize::try_from(self.u64()?).map_err(|_| format!("tensor `{name}`: offset is too large"))?;
        Ok(GgufTensor { name, shape, format, start, len })
    }
}

/// ggml's type numbers; the error names a type that exists but is not supported.
fn format_of(kind: u32) -> Parsed<WeightFormat> {
    Ok(match kind {
        0 => WeightFormat::F32,
        1 => WeightFormat::F16,
        2 => WeightFormat::Q4_0,
        3 => WeightFormat::Q4_1,
        6 => WeightFormat::Q5_0,
        7 => WeightFormat::Q5_1,
        8 => WeightFormat::Q8_0,
        12 => WeightFormat::Q4K,
        13 => WeightFormat::Q5K,
        14 => WeightFormat::Q6K,
        30 => WeightFormat::BF16,
        other => {
            const OTHERS: &[(u32, &str)] = &[
                (9, "Q8_1"),
                (10, "Q2_K"),
                (11, "Q3_K"),
                (15, "Q8_K"),
                (16, "IQ2_XXS"),
                (17, "IQ2_XS"),
                (18, "IQ3_XXS"),
                (19, "IQ1_S"),
                (20, "IQ4_NL"),
                (21, "IQ3_S"),
                (22, "IQ2_S"),
                (23, "IQ4_XS"),
                (24, "I8"),
                (25, "I16"),
                (26, "I32"),
                (27, "I64"),
                (28, "F64"),
                (29, "IQ1_M"),
                (34, "TQ1_0"),
                (35, "TQ2_0"),
                (39, "MXFP4"),
            ];
            let name = OTHERS.iter().find(|(kind, _)| *kind == other).map(|(_, name)| (*name).to_owned());
            return Err(name.unwrap_or_else(|| format!("number {other}")));
        }
    })
}
