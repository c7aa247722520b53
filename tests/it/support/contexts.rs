//! Descriptions of a context binary of a tiny llama, for tests that have no compiler.

use serde_json::{Value, json};

/// `info.json` of a binary with `layers`, which is number `shard` of `shards`.
pub fn info(layers: std::ops::Range<u32>, shard: u32, shards: u32) -> Value {
    let graph = |name: &str, tokens: u32, context: u32| {
        let tensor =
            |name: String, shape: Value| json!({"name": name, "shape": shape, "type": "f16"});
        let mut inputs = vec![
            tensor("attention_mask".into(), json!([1, 1, tokens, context])),
            tensor("position_ids_cos".into(), json!([1, 1, tokens, 8])),
        ];
        let mut outputs = vec![];
        for layer in layers.clone() {
            inputs.push(tensor(
                format!("past_key_{layer}_in"),
                json!([2, 1, 16, context - tokens]),
            ));
            inputs.push(tensor(
                format!("past_value_{layer}_in"),
                json!([2, 1, context - tokens, 16]),
            ));
        }
        if shard == 1 {
            inputs.push(tensor("input_ids".into(), json!([1, tokens])));
        }
        if shard == shards {
            outputs.push(tensor("logits".into(), json!([1, 1, tokens, 288])));
        }
        json!({"name": format!("{name}_{shard}_of_{shards}"), "inputs": inputs, "outputs": outputs})
    };
    let graphs = json!([
        graph("prompt_ar16_cl40", 16, 40),
        graph("token_ar1_cl40", 1, 40)
    ]);
    json!({"build_id": "v2.51.0.1", "soc_model": 57, "arch": 75, "graphs": graphs})
}

/// The facts of the part `model.bin`.
pub fn facts(shard: u32, shards: u32) -> Value {
    let graph = |name: &str, tokens: u32| {
        let name = format!("{name}_{shard}_of_{shards}");
        json!({"name": name, "tokens": tokens, "context": 40})
    };
    let graphs =
        json!({"prefill": graph("prompt_ar16_cl40", 16), "decode": graph("token_ar1_cl40", 1)});
    json!({"soc": "sm8650", "weight_sharing": true, "graphs": graphs})
}
