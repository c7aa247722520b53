//! Measured costs and estimates for the tests of this stage.

use std::collections::BTreeMap;

use super::times::Times;
use crate::artifact::estimate::{LayerEstimate, ModelEstimate};
use crate::artifact::sensitivity::{Cost, TensorCosts};
use serde_json::json;

pub(super) fn tensor(name: &str, native: f64, lpbq: f64) -> TensorCosts {
    let cost = |scheme: &str, bytes, kld| Cost {
        scheme: scheme.into(),
        bytes,
        kld,
    };
    TensorCosts {
        tensor: name.into(),
        costs: vec![cost("native", 450, native), cost("lpbq-64", 420, lpbq)],
    }
}

pub(super) fn tensors() -> Vec<TensorCosts> {
    vec![
        tensor("blk.0.attn_q.weight", 0.0, 3e-3),
        tensor("blk.1.attn_q.weight", 0.0, 1e-3),
        tensor("blk.2.attn_q.weight", 0.0, 2e-3),
        tensor("blk.0.ffn_up.weight", 0.0, 5e-4),
    ]
}

/// An estimate of a decode call: 500 us and the layers. Each takes `us`, blk.0.ffn_up double.
pub(super) fn estimate(soc: &str, scheme: &str, us: f64) -> ModelEstimate {
    let mut layers = BTreeMap::new();
    for tensor in tensors() {
        let factor = if tensor.tensor.contains("ffn") {
            2.0
        } else {
            1.0
        };
        let layer = json!({"scheme": scheme, "time_us": us * factor, "tokens": 1, "rows": 1,
            "columns": 1, "weight": {"kind": "lpbq", "block": 64}, "bias": false});
        let layer: LayerEstimate = serde_json::from_value(layer).unwrap();
        layers.insert(tensor.tensor, layer);
    }
    let decode = json!({"tokens": 1, "context": 8, "time_us": (500.0 + 5.0 * us) as u64, "time_lower_us": 0,
        "time_upper_us": 0, "cycles": 0, "read_bytes": 0, "fill_bytes": 0, "spill_bytes": 0,
        "write_bytes": 0, "ops_without_cost": 0, "layers": layers});
    let shard = json!({"soc": soc, "arch": 73, "graphs": {"decode": decode}});
    ModelEstimate::of(vec![serde_json::from_value(shard).unwrap()]).unwrap()
}

/// 500 us of other things; native layers take 300 us, LPBQ 101.
pub(super) fn times() -> Times {
    let native = estimate("qcs9075", "native", 300.0);
    Times::of(&[native, estimate("qcs9075", "lpbq-64", 101.0)]).unwrap()
}
