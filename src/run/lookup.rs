//! Of an embedding only the rows that some window looks up: ONNX Runtime would dequantize the whole
//! table for them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::decoder::Tensor;
use crate::base::{Code, Context, Problem, Result};
use crate::model::onnx::proto::{GraphProto, ModelProto, TensorProto};
use crate::model::onnx::{ExternalRows, Function};

/// Leaves `model`, whose external data lie in `folder`, the rows of its embedding that `windows`
/// look up, and has their ids say where those now are. A table whose rows are no whole bytes stays
/// as it is.
pub fn look_up(
    model: &mut ModelProto,
    folder: &Path,
    windows: &mut [HashMap<String, Tensor>],
) -> Result<()> {
    let Some(GraphProto {
        node, initializer, ..
    }) = model.graph.as_mut()
    else {
        return Ok(());
    };
    let call = node
        .iter_mut()
        .find(|call| matches!(Function::of(call), Some(Function::Embedding { .. })));
    let Some((ids, blobs)) = call.and_then(|call| call.input.split_first_mut()) else {
        return Ok(());
    };
    let mut places: BTreeMap<i32, i32> = BTreeMap::new();
    for window in windows.iter() {
        let Some(Tensor::I32(_, tokens)) = window.get(ids) else {
            return Ok(());
        };
        places.extend(tokens.iter().map(|token| (*token, 0)));
    }
    (0..)
        .zip(places.values_mut())
        .for_each(|(at, place)| *place = at);

    let mut tables = vec![];
    for blob in blobs.iter() {
        let stored = initializer.iter().find(|tensor| &tensor.name == blob);
        let Some(table) = stored
            .map(|stored| rows(stored, folder, places.keys()))
            .transpose()?
            .flatten()
        else {
            return Ok(());
        };
        tables.push(table);
    }
    for (blob, table) in blobs.iter_mut().zip(tables) {
        blob.clone_from(&table.name);
        initializer.push(table);
    }
    for window in windows {
        if let Some(Tensor::I32(_, tokens)) = window.get_mut(ids) {
            tokens
                .iter_mut()
                .for_each(|token| *token = places.get(token).copied().unwrap_or(0));
        }
    }
    Ok(())
}

/// The rows `ids` of `tensor`, in a tensor of their own; nothing if they are no whole bytes of a
/// file.
fn rows<'a>(
    tensor: &TensorProto,
    folder: &Path,
    ids: impl ExactSizeIterator<Item = &'a i32>,
) -> Result<Option<TensorProto>> {
    let Some(ExternalRows {
        location,
        offset,
        rows: all,
        row_bytes,
    }) = ExternalRows::of(tensor)
    else {
        return Ok(None);
    };
    let path = folder.join(location);
    let file = File::open(&path).context(Code::Io, || format!("open {}", path.display()))?;
    let mut row = vec![0; usize::try_from(row_bytes).unwrap_or(0)];
    let mut dims = tensor.dims.clone();
    dims.iter_mut()
        .take(1)
        .for_each(|count| *count = ids.len() as i64);
    let mut raw_data = vec![];
    for id in ids {
        let id = u64::try_from(*id)
            .ok()
            .filter(|id| *id < all)
            .ok_or_else(|| {
                Problem::new(
                    Code::EvaluateToken,
                    format!("there is no token {id}: the embedding has {all} rows"),
                )
            })?;
        let at = offset.saturating_add(id * row_bytes);
        file.read_exact_at(&mut row, at)
            .context(Code::Io, || format!("read {}", path.display()))?;
        raw_data.extend_from_slice(&row);
    }
    let name = format!("{}.looked_up", tensor.name);
    let data_type = tensor.data_type;
    Ok(Some(TensorProto {
        name,
        dims,
        data_type,
        raw_data,
        ..TensorProto::default()
    }))
}
