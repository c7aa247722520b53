//! Copies the descriptions of tensors and graphs that the libraries report.
#![allow(unsafe_code)]

use serde::Serialize;

use super::ffi;
use super::library::owned;
use crate::base::{Code, Problem, Result};

/// Limits on the counts that a library reports: far above any real graph, low enough for memory.
const MAX_GRAPHS: u32 = 4096;
const MAX_TENSORS: u32 = 65536;
const MAX_RANK: u32 = 16;

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorInfo {
    /// Its name. The libraries do not keep the order of tensors, so they are bound by name.
    pub name: String,
    /// `f16`, `i32`, `ufixed8`, ...
    #[serde(rename = "type")]
    pub type_name: String,
    /// Outermost first.
    pub shape: Vec<u32>,
    /// Scale and offset of a quantized tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_offset: Option<(f32, i32)>,
    /// `Qnn_DataType_t`.
    #[serde(skip)]
    pub data_type: u32,
    /// Its number in the backend.
    #[serde(skip)]
    pub(super) id: u32,
}

/// The signature of a graph.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GraphInfo {
    /// Its name.
    pub name: String,
    /// Sorted by name.
    pub inputs: Vec<TensorInfo>,
    /// Sorted by name.
    pub outputs: Vec<TensorInfo>,
    /// What it takes of the chip's memory; only of graphs in a context binary.
    #[serde(skip)]
    pub memory: Option<GraphMemory>,
}

/// The memory that a compiled graph uses while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GraphMemory {
    /// Tightly coupled memory of the HTP.
    pub vtcm_bytes: u32,
    /// Buffer in DDR for intermediate values that do not fit there.
    pub spill_fill_bytes: u64,
}

impl TensorInfo {
    /// Bytes of the tensor; `None` for a type of less than a byte or an unknown type.
    pub fn size_bytes(&self) -> Option<u64> {
        let element: u64 = match self.data_type & 0xFF {
            0x08 => 1,
            0x16 => 2,
            0x32 => 4,
            0x64 => 8,
            _ => return None,
        };
        let mut size = element;
        for &dim in &self.shape {
            size = size.checked_mul(dim.into())?;
        }
        Some(size)
    }

    /// # Safety
    /// `tensor` is one that a QNN library reports, valid for the call.
    unsafe fn read(tensor: &ffi::Tensor) -> Result<Self> {
        let body = &tensor.body;
        if !matches!(tensor.version, ffi::V1 | ffi::V2)
            || body.rank > MAX_RANK
            || (body.rank > 0 && body.dims.is_null())
        {
            return Err(invalid(format!(
                "a tensor of version {} and rank {}",
                tensor.version, body.rank
            )));
        }
        let shape = match body.rank {
            0 => vec![],
            // SAFETY: `dims` is not null and has `rank` elements.
            rank => unsafe { std::slice::from_raw_parts(body.dims, rank as usize) }.to_vec(),
        };
        let is_quantized = body.quantize.definition == ffi::DEFINED
            && body.quantize.encoding == ffi::ENCODING_SCALE_OFFSET;
        let mut scale_offset = None;
        if is_quantized {
            // SAFETY: every bit pattern of the union is a pair of numbers.
            let pair = unsafe { body.quantize.of.scale_offset };
            scale_offset = Some((pair.scale, pair.offset));
        }
        Ok(TensorInfo {
            // SAFETY: a name is null or a C string.
            name: unsafe { owned(body.name) },
            type_name: type_name(body.data_type),
            shape,
            scale_offset,
            data_type: body.data_type,
            id: body.id,
        })
    }
}

impl GraphInfo {
    /// The input or output called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let is_named = |tensor: &&TensorInfo| tensor.name == name;
        let input = self.inputs.iter().find(is_named);
        input.or_else(|| self.outputs.iter().find(is_named))
    }

    /// # Safety
    /// `graph` is one that a QNN library reports, valid for the call.
    pub(super) unsafe fn read(graph: &ffi::GraphInfo) -> Result<Self> {
        // SAFETY: what the caller promises.
        unsafe {
            Ok(GraphInfo {
                name: owned(graph.name),
                inputs: read_tensors(graph.inputs, graph.input_count)?,
                outputs: read_tensors(graph.outputs, graph.output_count)?,
                memory: None,
            })
        }
    }

    /// # Safety
    /// `graphs` points to `count` complete `QnnSystemContext_GraphInfo_t`.
    pub(super) unsafe fn read_all(graphs: *const ffi::GraphInfo, count: u32) -> Result<Vec<Self>> {
        if count > MAX_GRAPHS || (count > 0 && graphs.is_null()) {
            return Err(invalid(format!("{count} graphs")));
        }
        let mut all = vec![];
        for index in 0..count as usize {
            // SAFETY: the elements of the array have the size of their largest version.
            let element = unsafe { &*graphs.cast::<ffi::GraphInfoV3>().add(index) };
            let version = element.info.version;
            if !(1..=3).contains(&version) {
                return Err(invalid(format!("a graph of version {version}")));
            }
            // SAFETY: what the caller promises.
            let mut graph = unsafe { GraphInfo::read(&element.info) }?;
            if version == 3
                && element.blob_size as usize >= size_of::<ffi::GraphBlob>()
                && !element.blob.is_null()
            {
                // SAFETY: `blob_size` bytes of the library, at any address.
                graph.memory = GraphMemory::of(unsafe { element.blob.read_unaligned() });
            }
            all.push(graph);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

impl GraphMemory {
    /// `None` if the layout is of another version.
    fn of(blob: ffi::GraphBlob) -> Option<Self> {
        (blob.version == ffi::V1).then_some(GraphMemory {
            vtcm_bytes: blob.vtcm_bytes,
            spill_fill_bytes: blob.spill_fill_bytes,
        })
    }
}

unsafe fn read_tensors(tensors: *const ffi::Tensor, count: u32) -> Result<Vec<TensorInfo>> {
    if count > MAX_TENSORS || (count > 0 && tensors.is_null()) {
        return Err(invalid(format!("{count} tensors")));
    }
    if count == 0 {
        return Ok(vec![]);
    }
    // SAFETY: the array and its length are the library's.
    let tensors = unsafe { std::slice::from_raw_parts(tensors, count as usize) };
    let mut all = vec![];
    for tensor in tensors {
        // SAFETY: as above.
        all.push(unsafe { TensorInfo::read(tensor) }?);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn invalid(what: String) -> Problem {
    Problem::new(
        Code::QnnOddAnswer,
        format!("the QNN library reports {what}"),
    )
}

/// The name of a `Qnn_DataType_t` in messages.
pub(super) fn type_name(data_type: u32) -> String {
    let family = match data_type >> 8 {
        0 => "i",
        1 => "u",
        2 if data_type == 0x226 => "bf",
        2 => "f",
        3 => "sfixed",
        4 => "ufixed",
        5 => return "bool".into(),
        _ => return format!("type {data_type:#x}"),
    };
    // The hexadecimal digits of the width read as decimal: 0x216 is a 16-bit float.
    let bits = if data_type == 0x226 {
        0x16
    } else {
        data_type & 0xFF
    };
    format!("{family}{bits:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_names() {
        let names = [0x216, 0x32, 0x408, 0x416, 0x226, 0x508, 0x7FFF_FFFF].map(type_name);
        assert_eq!(
            names,
            [
                "f16",
                "i32",
                "ufixed8",
                "ufixed16",
                "bf16",
                "bool",
                "type 0x7fffffff"
            ]
        );
    }
}
