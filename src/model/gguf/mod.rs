//! GGUF, versions 2 and 3, of either byte order, in one file or several: a reader for untrusted
//! files, and a writer.
//!
//! ```text
//! "GGUF"  version u32  tensors u64  keys u64
//! keys x    { key string, type u32, value }
//! tensors x { name string, dims u32, dim u64 ..., type u32, offset u64 }     padded to general.alignment
//! data, each tensor padded likewise
//! ```
//!
//! Every limit of ggml's own reader (`ggml/src/gguf.cpp`) is checked, and counts are capped. The
//! reader allocates two list entries for each key and one for each tensor, at most 2^16 of each:
//! strings and arrays stay in the file.

mod metadata;
mod reader;
mod split;
mod swap;
mod tensor;
mod value;
mod writer;

pub use metadata::{FromValue, Metadata, Uniform, quoted};
pub use reader::ByteOrder;
pub use split::{MAX_FILES, files_of};
pub use swap::{can_swap, swap};
pub use tensor::TensorInfo;
pub use value::{Array, Value, ValueType};
pub use writer::{Entry, Header};

use crate::base::{Code, Problem, Result};
use crate::model::tokenizer::TokenizerFacts;
use reader::Reader;

/// The first bytes of a GGUF.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The help of a problem with a file that ends too early.
const TRUNCATED_HELP: &str = "the file is truncated or damaged; fetch it again. One that was cut \
                              into pieces, as NAME.gguf.part1of2, is joined by `parts` of a \
                              `fetch` stage";

const DEFAULT_ALIGNMENT: u32 = 32;

/// Largest alignment: a greater one only serves overflows (llama.cpp pull request 24997).
const MAX_ALIGNMENT: u32 = 1 << 20;

/// A checked model: every tensor is inside its file, and no two overlap.
#[derive(Debug)]
pub struct Gguf<'a> {
    /// 2 or 3, of the first file.
    pub version: u32,
    /// Byte order of all numbers, those in tensors too.
    pub order: ByteOrder,
    /// Tensors of the first file begin at multiples of it.
    pub alignment: u32,
    /// The key-value pairs of the first file, without those of the split (`split.*`).
    pub metadata: Metadata<'a>,
    /// The tensors, in the order of the files.
    pub tensors: Vec<TensorInfo<'a>>,
    files: Vec<&'a [u8]>,
}

/// The first bytes of a file, and its length.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    /// The bytes that were read.
    pub bytes: &'a [u8],
    /// Length of the file.
    pub file_bytes: u64,
}

impl<'a> Prefix<'a> {
    /// All bytes of a file.
    pub fn whole(bytes: &'a [u8]) -> Self {
        Prefix {
            bytes,
            file_bytes: bytes.len() as u64,
        }
    }
}

impl<'a> Gguf<'a> {
    /// Reads the header of a model in one file, and checks it against the length of the file.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        Gguf::parse_files(&[Prefix::whole(file)])
    }

    /// The version of a file that begins with `head`; a problem if kiln cannot read it.
    pub fn version(head: &[u8]) -> Result<u32> {
        read_version(&mut Reader::new(head, ByteOrder::Little))
    }

    /// Reads the headers of all files of a model, in their order. [`Gguf::data`] is empty for
    /// tensors beyond the prefix of their file.
    pub fn parse_files(files: &[Prefix<'a>]) -> Result<Self> {
        let mut heads = vec![];
        for (index, file) in files.iter().enumerate() {
            let head = Head::read(*file).map_err(|problem| in_file(index, files.len(), problem))?;
            heads.push(head);
        }
        split::check(&heads)?;
        let Some(first) = heads.first() else {
            return Err(Problem::new(Code::ModelGgufSplit, "a model without a file"));
        };
        let (version, order) = (first.version, first.reader.order());
        let alignment = first.alignment.unwrap_or(DEFAULT_ALIGNMENT);
        let mut tensors = vec![];
        for (index, head) in heads.iter().enumerate() {
            let of_file = head
                .tensors(alignment)
                .map_err(|problem| in_file(index, files.len(), problem))?;
            for tensor in of_file {
                tensors.push(TensorInfo {
                    file: index,
                    ..tensor
                });
            }
        }
        let is_split = heads.len() > 1;
        if is_split {
            split::check_tensors(&heads, &tensors)?;
        }
        let mut metadata = heads.swap_remove(0).metadata;
        if is_split {
            metadata = metadata.retain(|key| !split::is_split_key(key));
        }
        Ok(Gguf {
            version,
            order,
            alignment,
            metadata,
            tensors,
            files: files.iter().map(|file| file.bytes).collect(),
        })
    }

    /// The bytes of one of its tensors, as they are in the file.
    pub fn data(&self, tensor: &TensorInfo) -> &'a [u8] {
        let Some(file) = self.files.get(tensor.file) else {
            return &[];
        };
        file.get(tensor.range.start as usize..tensor.range.end as usize)
            .unwrap_or_default()
    }

    /// The kind of its tokenizer; none, if the names in the metadata are no strings.
    pub fn tokenizer(&self) -> TokenizerFacts {
        let tokens = self.metadata.get::<Array>("tokenizer.ggml.tokens");
        let model = self.metadata.get::<&str>("tokenizer.ggml.model");
        let pre = self.metadata.get::<&str>("tokenizer.ggml.pre");
        match (tokens, model, pre) {
            (Ok(Some(_)), Ok(Some(model)), Ok(pre)) => TokenizerFacts::new(model, pre),
            _ => TokenizerFacts::default(),
        }
    }

    /// The number of its files.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }
}

/// `problem`, with file `index` (from 0) if there are several.
fn in_file(index: usize, count: usize, problem: Problem) -> Problem {
    if count == 1 {
        return problem;
    }
    problem.within(format!(
        "failed to read file {} of the {count} of a model",
        index + 1
    ))
}

/// A file, read up to its list of tensors.
struct Head<'a> {
    version: u32,
    alignment: Option<u32>,
    metadata: Metadata<'a>,
    tensor_count: u64,
    /// At the first byte of the list.
    reader: Reader<'a>,
    file_bytes: u64,
}

impl<'a> Head<'a> {
    fn read(file: Prefix<'a>) -> Result<Self> {
        let mut reader = Reader::new(file.bytes, ByteOrder::Little);
        let version = read_version(&mut reader)?;
        let tensor_count = reader.u64()?;
        let key_count = reader.u64()?;
        let metadata = Metadata::read(&mut reader, key_count)?;
        let alignment = read_alignment(&metadata)?;
        Ok(Head {
            version,
            alignment,
            metadata,
            tensor_count,
            reader,
            file_bytes: file.file_bytes,
        })
    }

    /// The list of tensors. A file without a key for its alignment has the default alignment. But
    /// gguf-py uses the alignment of the first file for all files of a split model and writes no
    /// key, so that alignment is used if the length of the file confirms it.
    fn tensors(&self, first_alignment: u32) -> Result<Vec<TensorInfo<'a>>> {
        if self.alignment.is_none()
            && first_alignment != DEFAULT_ALIGNMENT
            && let Ok(tensors) = self.tensors_aligned(first_alignment)
            && let Some(last) = tensors.last()
            && last.range.end.next_multiple_of(first_alignment.into()) == self.file_bytes
        {
            return Ok(tensors);
        }
        self.tensors_aligned(self.alignment.unwrap_or(DEFAULT_ALIGNMENT))
    }

    fn tensors_aligned(&self, alignment: u32) -> Result<Vec<TensorInfo<'a>>> {
        let mut reader = self.reader.clone();
        let mut tensors = TensorInfo::read_all(&mut reader, self.tensor_count, alignment.into())?;
        let data_offset = (reader.position() as u64).next_multiple_of(alignment.into());
        TensorInfo::place_all(&mut tensors, data_offset, self.file_bytes)?;
        Ok(tensors)
    }
}

/// Reads magic and version, and sets the byte order of `reader` by the version.
fn read_version(reader: &mut Reader) -> Result<u32> {
    let magic: [u8; 4] = reader.array()?;
    if magic != MAGIC {
        return Err(Problem::new(
            Code::ModelGgufMagic,
            format!(
                "not a GGUF: it begins with {:?}",
                magic.escape_ascii().to_string()
            ),
        ));
    }
    let mut version = reader.u32()?;
    // gguf.cpp detects the byte order in the same way.
    if version & 0xffff == 0 {
        reader.set_order(ByteOrder::Big);
        version = version.swap_bytes();
    }
    match version {
        2 | 3 => Ok(version),
        1 => Err(Problem::new(
            Code::ModelGgufVersion,
            "GGUF version 1, whose lengths have 32 bits",
        )
        .help(
            "make the file again with a present llama.cpp, which does not read version 1 either",
        )),
        version => Err(Problem::new(
            Code::ModelGgufVersion,
            format!("GGUF version {version}; kiln reads versions 2 and 3"),
        )),
    }
}

fn read_alignment(metadata: &Metadata) -> Result<Option<u32>> {
    let alignment = match metadata.get::<Value>("general.alignment")? {
        None => return Ok(None),
        Some(Value::U32(alignment))
            if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT =>
        {
            return Ok(Some(alignment));
        }
        Some(other) => other,
    };
    Err(Problem::new(
        Code::ModelGgufAlignment,
        format!(
            "`general.alignment` is {}; expected a u32, a power of two up to {MAX_ALIGNMENT}",
            alignment.described()
        ),
    ))
}
