//! GGUF, versions 2 and 3, of either byte order, in one file or several: a reader for files that
//! nobody vouches for, and a writer.
//!
//! ```text
//! "GGUF"  version u32  tensors u64  keys u64
//! keys x    { key string, type u32, value }
//! tensors x { name string, dims u32, dim u64 ..., type u32, offset u64 }     padded to general.alignment
//! data, each tensor padded likewise
//! ```
//!
//! Every limit of ggml's own reader holds (`ggml/src/gguf.cpp`), and counts are capped. What it
//! allocates is two list entries a key and one a tensor, at most 2^16 of each: strings and arrays
//! stay in the file.

mod metadata;
mod reader;
mod split;
mod summary;
mod swap;
mod tensor;
mod value;
mod writer;

pub use metadata::{FromValue, Metadata, Uniform, quoted};
pub use reader::ByteOrder;
pub use split::{MAX_FILES, files_of, is_split_key};
pub use summary::{Scalars, Summary, Under};
pub use swap::{can_swap, swap};
pub use tensor::TensorInfo;
pub use value::{Array, Value, ValueType};
pub use writer::{Entry, Header};

use crate::base::{Code, Problem, Result};
use crate::model::tokenizer::unsupported;
use reader::Reader;

/// What a GGUF begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The way out where a file ends too early.
const CUT: &str = "the file is truncated or damaged; fetch it again. One that was cut into \
                   pieces, as NAME.gguf.part1of2, is joined by `parts` of a `fetch` stage";

const DEFAULT_ALIGNMENT: u32 = 32;

/// Largest alignment: a greater one only serves overflows (llama.cpp pull request 24997).
const MAX_ALIGNMENT: u32 = 1 << 20;

/// A checked model: every tensor lies inside its file, none overlaps another.
#[derive(Debug)]
pub struct Gguf<'a> {
    /// 2 or 3, of the first file.
    pub version: u32,
    /// Of all numbers, those in tensors too.
    pub order: ByteOrder,
    /// Tensors of the first file begin at multiples of it.
    pub alignment: u32,
    /// The key-value pairs of the first file; of a split model, without what says that it is
    /// split.
    pub metadata: Metadata<'a>,
    /// The tensors, in the order of the files.
    pub tensors: Vec<TensorInfo<'a>>,
    files: Vec<&'a [u8]>,
}

/// The first bytes of a file, and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    /// What is at hand of it.
    pub bytes: &'a [u8],
    /// Its length.
    pub file_bytes: u64,
}

impl<'a> Prefix<'a> {
    /// All of a file.
    pub fn whole(bytes: &'a [u8]) -> Self {
        Prefix {
            bytes,
            file_bytes: bytes.len() as u64,
        }
    }
}

impl<'a> Gguf<'a> {
    /// Reads the header of a model in one file, and checks it against the whole.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        Gguf::parse_files(&[Prefix::whole(file)])
    }

    /// The version of a file that begins with `head`, if it is a GGUF of one that can be read.
    pub fn version(head: &[u8]) -> Result<u32> {
        read_version(&mut Reader::new(head, ByteOrder::Little))
    }

    /// Reads the headers of all files of a model, in their order. [`Gguf::data`] is empty for what
    /// is not at hand.
    pub fn parse_files(files: &[Prefix<'a>]) -> Result<Self> {
        let within = |index: usize, problem: Problem| match files.len() {
            1 => problem,
            count => problem.within(format!(
                "failed to read file {} of the {count} of a model",
                index + 1
            )),
        };
        let heads = files
            .iter()
            .enumerate()
            .map(|(i, file)| Head::read(*file).map_err(|p| within(i, p)));
        let heads = heads.collect::<Result<Vec<Head>>>()?;
        split::check(&heads)?;
        let first = heads
            .first()
            .ok_or_else(|| Problem::new(Code::ModelGgufSplit, "a model without a file"))?;
        let (version, order) = (first.version, first.reader.order());
        let alignment = first.alignment.unwrap_or(DEFAULT_ALIGNMENT);
        let mut tensors = vec![];
        for (index, head) in heads.iter().enumerate() {
            let mut own = head
                .tensors(alignment)
                .map_err(|problem| within(index, problem))?;
            own.iter_mut().for_each(|tensor| tensor.file = index);
            tensors.append(&mut own);
        }
        let is_split = heads.len() > 1;
        if is_split {
            split::check_tensors(&heads, &tensors)?;
        }
        let metadata = heads
            .into_iter()
            .next()
            .map(|head| head.metadata)
            .unwrap_or_default();
        let metadata = if is_split {
            metadata.retain(|key| !is_split_key(key))
        } else {
            metadata
        };
        let files = files.iter().map(|file| file.bytes).collect();
        Ok(Gguf {
            version,
            order,
            alignment,
            metadata,
            tensors,
            files,
        })
    }

    /// The bytes of one of its tensors, as they lie in the file.
    pub fn data(&self, tensor: &TensorInfo) -> &'a [u8] {
        let range = tensor.range.start as usize..tensor.range.end as usize;
        self.files
            .get(tensor.file)
            .and_then(|file| file.get(range))
            .unwrap_or_default()
    }

    /// Why its tokenizer cannot be used, if it has one that cannot.
    pub fn tokenizer_problem(&self) -> Option<Problem> {
        let word = |key: &str| self.metadata.get::<&str>(key);
        let has_tokens = self
            .metadata
            .get::<Array>("tokenizer.ggml.tokens")
            .is_ok_and(|tokens| tokens.is_some());
        let model = word("tokenizer.ggml.model").ok().flatten();
        match model.filter(|_| has_tokens) {
            Some(model) => match word("tokenizer.ggml.pre") {
                Ok(pre) => unsupported(model, pre),
                Err(problem) => Some(problem),
            },
            None => Some(
                Problem::new(Code::TokenizerNone, "the file has no tokenizer").help(
                    "leave out the stages `reference` and `package`, or take a GGUF of the whole \
                     model",
                ),
            ),
        }
    }

    /// How many files it is in.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }
}

/// A file, read up to its list of tensors.
struct Head<'a> {
    version: u32,
    alignment: Option<u32>,
    metadata: Metadata<'a>,
    tensor_count: u64,
    /// Where the list begins.
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

    /// The list of tensors. A file that does not say its alignment has the default; but gguf-py
    /// gives all files of a split model that of the first and does not say so, and then the
    /// length of the file does.
    fn tensors(&self, first: u32) -> Result<Vec<TensorInfo<'a>>> {
        if self.alignment.is_none() && first != DEFAULT_ALIGNMENT {
            let fits = |tensors: &Vec<TensorInfo>| {
                let end = tensors
                    .last()
                    .map(|tensor| tensor.range.end.next_multiple_of(first.into()));
                end == Some(self.file_bytes)
            };
            if let Some(tensors) = self.aligned(first).ok().filter(fits) {
                return Ok(tensors);
            }
        }
        self.aligned(self.alignment.unwrap_or(DEFAULT_ALIGNMENT))
    }

    fn aligned(&self, alignment: u32) -> Result<Vec<TensorInfo<'a>>> {
        let mut reader = self.reader.clone();
        let mut tensors = TensorInfo::read_all(&mut reader, self.tensor_count, alignment.into())?;
        let data_offset = (reader.position() as u64).next_multiple_of(alignment.into());
        TensorInfo::place_all(&mut tensors, data_offset, self.file_bytes)?;
        Ok(tensors)
    }
}

/// Reads magic and version, and so the order of the bytes of all that follows.
fn read_version(reader: &mut Reader) -> Result<u32> {
    let unsupported = |what: String| Problem::new(Code::ModelGgufVersion, what);
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
    // gguf.cpp tells the byte order the same way.
    if version & 0xffff == 0 {
        reader.set_order(ByteOrder::Big);
        version = version.swap_bytes();
    }
    match version {
        2 | 3 => Ok(version),
        1 => Err(
            unsupported("GGUF version 1, whose lengths have 32 bits".into()).help(
                "make the file again with a present llama.cpp, which does not read version 1 \
                 either",
            ),
        ),
        version => Err(unsupported(format!(
            "GGUF version {version}; kiln reads versions 2 and 3"
        ))),
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
