//! Replaces an embedding table by the rows that some window looks up. Otherwise ONNX Runtime would
//! dequantize the whole table for them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::decoder::Tensor;
use crate::base::{Code, Context, Problem, Result};
use crate::model::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::model::onnx::{ExternalRows, Function};

/// Reduces the embedding of `model` to the rows that `windows` look up, and changes the ids of the
/// windows to the new indices. The external data of the model are in `folder`. A table whose rows
/// are not whole bytes stays as it is.
pub(super) fn look_up(
    model: &mut ModelProto,
    folder: &Path,
    windows: &mut [HashMap<String, Tensor>],
) -> Result<()> {
    let Some(GraphProto {
        node: nodes,
        initializer,
        ..
    }) = &mut model.graph
    else {
        return Ok(());
    };
    let Some(call) = nodes.iter_mut().find(|node| is_embedding(node)) else {
        return Ok(());
    };
    let Some((ids, blobs)) = call.input.split_first_mut() else {
        return Ok(());
    };
    let mut new_ids: BTreeMap<i32, i32> = BTreeMap::new();
    for window in windows.iter() {
        let Some(Tensor::I32(_, tokens)) = window.get(ids) else {
            return Ok(());
        };
        new_ids.extend(tokens.iter().map(|token| (*token, 0)));
    }
    for (index, new_id) in new_ids.values_mut().enumerate() {
        *new_id = index as i32;
    }

    let mut tables = vec![];
    for blob in blobs.iter() {
        let Some(table) = initializer.iter().find(|tensor| &tensor.name == blob) else {
            return Ok(());
        };
        let Some(table) = read_rows(table, folder, new_ids.keys())? else {
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
            for token in tokens {
                *token = new_ids.get(token).copied().unwrap_or(0);
            }
        }
    }
    Ok(())
}

fn is_embedding(node: &NodeProto) -> bool {
    matches!(Function::of(node), Some(Function::Embedding { .. }))
}

/// The rows `ids` of `tensor` as a tensor of their own; `None` if they are not whole bytes of a
/// file.
fn read_rows<'a>(
    tensor: &TensorProto,
    folder: &Path,
    ids: impl ExactSizeIterator<Item = &'a i32>,
) -> Result<Option<TensorProto>> {
    let Some(ExternalRows {
        location,
        offset,
        rows,
        row_bytes,
    }) = ExternalRows::of(tensor)
    else {
        return Ok(None);
    };
    let path = folder.join(location);
    let file = File::open(&path).context(Code::Io, || format!("open {}", path.display()))?;
    let mut row = vec![0; usize::try_from(row_bytes).unwrap_or(0)];
    let mut dims = tensor.dims.clone();
    if let Some(count) = dims.first_mut() {
        *count = ids.len() as i64;
    }
    let mut raw_data = vec![];
    for id in ids {
        let index = match u64::try_from(*id) {
            Ok(index) if index < rows => index,
            _ => {
                let message = format!("there is no token {id}: the embedding has {rows} rows");
                return Err(Problem::new(Code::EvaluateToken, message));
            }
        };
        let start = offset.saturating_add(index * row_bytes);
        file.read_exact_at(&mut row, start)
            .context(Code::Io, || format!("read {}", path.display()))?;
        raw_data.extend_from_slice(&row);
    }
    Ok(Some(TensorProto {
        name: format!("{}.looked_up", tensor.name),
        dims,
        data_type: tensor.data_type,
        raw_data,
        ..TensorProto::default()
    }))
}
