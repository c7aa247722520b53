//! Writes GGUF containers byte by byte, right or wrong: independent of the reader under test.

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Value {
    U8(u8),
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(u8),
    Str(String),
    U64(u64),
    F64(f64),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Type id, then the value's bytes: whatever a hostile file may hold.
    Raw(u32, Vec<u8>),
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Value::F32(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Str(value.into())
    }
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let (id, bytes) = match self {
            Value::U8(v) => (0, vec![*v]),
            Value::U16(v) => (2, v.to_le_bytes().into()),
            Value::U32(v) => (4, v.to_le_bytes().into()),
            Value::I32(v) => (5, v.to_le_bytes().into()),
            Value::F32(v) => (6, v.to_le_bytes().into()),
            Value::Bool(v) => (7, vec![*v]),
            Value::Str(v) => (8, string(v)),
            Value::U64(v) => (10, v.to_le_bytes().into()),
            Value::F64(v) => (12, v.to_le_bytes().into()),
            Value::Strings(v) => (
                9,
                array(8, v.len() as u64, v.iter().flat_map(|s| string(s))),
            ),
            Value::I32s(v) => (
                9,
                array(5, v.len() as u64, v.iter().flat_map(|v| v.to_le_bytes())),
            ),
            Value::F32s(v) => (
                9,
                array(6, v.len() as u64, v.iter().flat_map(|v| v.to_le_bytes())),
            ),
            Value::Raw(id, bytes) => (*id, bytes.clone()),
        };
        out.extend(u32::to_le_bytes(id));
        out.extend(bytes);
    }
}

/// A string as GGUF spells it.
pub fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.bytes());
    out
}

/// The body of an array that claims `len` elements of type `element`.
pub fn array(element: u32, len: u64, bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut out = element.to_le_bytes().to_vec();
    out.extend(len.to_le_bytes());
    out.extend(bytes);
    out
}

/// One tensor. Dimensions as GGUF has them: fastest first.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub type_id: u32,
    /// Where it claims to lie in the data section; by default right after its predecessor.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

/// A whole file. Every count and offset is right unless it is set.
#[derive(Clone, Debug)]
pub struct GgufFile {
    pub magic: [u8; 4],
    pub version: u32,
    /// The alignment that the writer really uses; `general.alignment` is up to `keys`.
    pub alignment: usize,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    pub claimed_keys: Option<u64>,
    pub claimed_tensors: Option<u64>,
}

impl Default for GgufFile {
    fn default() -> Self {
        GgufFile {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            keys: vec![],
            tensors: vec![],
            claimed_keys: None,
            claimed_tensors: None,
        }
    }
}

impl GgufFile {
    /// Sets a key, in place if it is there.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        match self.keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value.into(),
            None => self.keys.push((key.into(), value.into())),
        }
    }

    /// Adds a tensor right after its predecessor.
    pub fn tensor(&mut self, name: &str, dims: &[u64], type_id: u32, data: Vec<u8>) {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: dims.into(),
            type_id,
            offset: None,
            data,
        });
    }

    /// The bytes of the file.
    pub fn write(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(
            self.claimed_tensors
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        out.extend(
            self.claimed_keys
                .unwrap_or(self.keys.len() as u64)
                .to_le_bytes(),
        );
        for (key, value) in &self.keys {
            out.extend(string(key));
            value.write(&mut out);
        }
        let mut next = 0;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor
                .dims
                .iter()
                .for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += tensor.data.len().next_multiple_of(self.alignment) as u64;
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }
}
