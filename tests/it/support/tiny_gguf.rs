//! Tiny but valid models: `TinyGguf::qwen2().write()` gives the bytes of a GGUF that every stage
//! takes.
//!
//! Deterministic: the values of a tensor depend on its name and the seed only. Untrained: the text
//! it makes is noise.

use super::gguf_file::{GgufFile, Value};
use super::quantize::{Quant, encode};

/// What a tiny model is made of; every setter has a default that fits the others.
#[derive(Clone, Debug)]
pub struct TinyGguf {
    architecture: &'static str,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    matrices: Quant,
    types: Vec<(String, Quant)>,
    bias: bool,
    large_biases: bool,
    tied: bool,
    seed: u64,
}

impl TinyGguf {
    /// llama: two layers, 4 heads over 2, head_dim 16, interleaved RoPE rows, no biases, tied
    /// embeddings, Q4_1 as SmolLM2's.
    pub fn llama() -> Self {
        TinyGguf {
            architecture: "llama",
            bias: false,
            tied: true,
            matrices: Quant::Q4_1,
            ..TinyGguf::qwen2()
        }
    }

    /// qwen2: two layers, 4 heads over 2, head_dim 16, biases of q, k and v, an `output.weight` of
    /// its own, Q4_0.
    pub fn qwen2() -> Self {
        TinyGguf {
            architecture: "qwen2",
            layers: 2,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            ffn: 128,
            matrices: Quant::Q4_0,
            types: vec![],
            bias: true,
            large_biases: false,
            tied: false,
            seed: 1,
        }
    }

    /// Number of layers.
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// Widths of the residual stream and of the feed-forward layer. Q6_K wants multiples of 256.
    pub fn widths(mut self, hidden: usize, ffn: usize) -> Self {
        (self.hidden, self.ffn) = (hidden, ffn);
        self
    }

    /// Query heads, and key and value heads.
    pub fn heads(mut self, heads: usize, kv_heads: usize) -> Self {
        (self.heads, self.kv_heads) = (heads, kv_heads);
        self
    }

    /// The type of all matrices.
    pub fn matrices(mut self, quant: Quant) -> Self {
        self.matrices = quant;
        self
    }

    /// The type of one tensor.
    pub fn tensor_type(mut self, name: &str, quant: Quant) -> Self {
        self.types.push((name.into(), quant));
        self
    }

    /// Whether q, k and v have biases.
    pub fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Biases as trained Qwen2 models have them: hundreds for k and tens for q, in the slowest
    /// quarter of each head's columns.
    pub fn large_biases(mut self) -> Self {
        self.large_biases = true;
        self
    }

    /// Whether the head is the embedding.
    pub fn tied(mut self, tied: bool) -> Self {
        self.tied = tied;
        self
    }

    /// Another seed, other weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The bytes of the file.
    pub fn write(&self) -> Vec<u8> {
        self.file().write()
    }

    /// The file, for tests that spoil it before they write it.
    pub fn file(&self) -> GgufFile {
        let mut file = GgufFile::default();
        let vocabulary = Vocabulary::new();
        let arch = |key: &str| format!("{}.{key}", self.architecture);
        file.set("general.architecture", self.architecture);
        file.set("general.name", "Tiny");
        file.set(&arch("block_count"), self.layers as u32);
        file.set(&arch("context_length"), 512);
        file.set(&arch("embedding_length"), self.hidden as u32);
        file.set(&arch("feed_forward_length"), self.ffn as u32);
        file.set(&arch("attention.head_count"), self.heads as u32);
        file.set(&arch("attention.head_count_kv"), self.kv_heads as u32);
        file.set(&arch("attention.layer_norm_rms_epsilon"), 1e-5);
        file.set(&arch("rope.freq_base"), 10000.0);
        file.set("tokenizer.ggml.model", "gpt2");
        file.set(
            "tokenizer.ggml.pre",
            if self.architecture == "llama" {
                "smollm"
            } else {
                "qwen2"
            },
        );
        let count = vocabulary.tokens.len();
        let is_control = |id: usize| id >= count - CONTROL.len();
        file.set(
            "tokenizer.ggml.token_type",
            Value::I32s(
                (0..count)
                    .map(|id| if is_control(id) { 3 } else { 1 })
                    .collect(),
            ),
        );
        file.set("tokenizer.ggml.tokens", Value::Strings(vocabulary.tokens));
        file.set("tokenizer.ggml.merges", Value::Strings(vocabulary.merges));
        file.set("tokenizer.ggml.bos_token_id", count as u32 - 2);
        file.set("tokenizer.ggml.eos_token_id", count as u32 - 1);
        file.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
        self.tensors(count)
            .into_iter()
            .for_each(|(name, rows, columns)| self.add(&mut file, &name, rows, columns));
        file
    }

    /// Name, rows (0 for a vector) and columns of every tensor.
    fn tensors(&self, vocab: usize) -> Vec<(String, usize, usize)> {
        let (hidden, ffn, head_dim) = (self.hidden, self.ffn, self.hidden / self.heads);
        let (q, kv) = (self.heads * head_dim, self.kv_heads * head_dim);
        let mut all = vec![
            ("token_embd.weight".to_string(), vocab, hidden),
            ("output_norm.weight".into(), 0, hidden),
        ];
        if !self.tied {
            all.push(("output.weight".into(), vocab, hidden));
        }
        for layer in 0..self.layers {
            let mut add = |name: &str, rows, columns| {
                all.push((format!("blk.{layer}.{name}"), rows, columns))
            };
            add("attn_norm.weight", 0, hidden);
            for (name, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                add(&format!("{name}.weight"), rows, hidden);
                if self.bias {
                    add(&format!("{name}.bias"), 0, rows);
                }
            }
            add("attn_output.weight", hidden, q);
            add("ffn_norm.weight", 0, hidden);
            add("ffn_gate.weight", ffn, hidden);
            add("ffn_up.weight", ffn, hidden);
            add("ffn_down.weight", hidden, ffn);
        }
        all
    }

    fn add(&self, file: &mut GgufFile, name: &str, rows: usize, columns: usize) {
        let own_type = self
            .types
            .iter()
            .find(|(tensor, _)| tensor == name)
            .map(|(_, quant)| *quant);
        let default = if rows == 0 { Quant::F32 } else { self.matrices };
        let quant = own_type.unwrap_or(default);
        let (centre, spread) = match rows {
            0 if name.ends_with("norm.weight") => (1.0, 0.1),
            0 => (0.0, 0.3),
            _ => (0.0, 0.6 / (columns as f32).sqrt()),
        };
        let mut random = Random::of(name, self.seed);
        let half = self.hidden / self.heads / 2;
        let is_slow = |column: usize| column % half >= half / 4 * 3;
        let spread = |column| match name.split('.').nth_back(1) {
            Some("attn_k") if rows == 0 && self.large_biases && is_slow(column) => 300.0,
            Some("attn_q") if rows == 0 && self.large_biases && is_slow(column) => 30.0,
            _ => spread,
        };
        let values: Vec<f32> = (0..rows.max(1) * columns)
            .map(|i| centre + spread(i) * random.normal())
            .collect();
        let dims = if rows == 0 {
            vec![columns as u64]
        } else {
            vec![columns as u64, rows as u64]
        };
        file.tensor(name, &dims, quant as u32, encode(quant, &values));
    }
}

const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: &str = "Ġ t,h e,i n,r e,o n,Ġ a,Ġt he,e r,a t,Ġ o,e n,n d,Ġ s,i t,Ġ w,e s,Ġo f,o \
                      r,Ġ b,a n,Ġ c,i s,in g,Ġ p,e d,Ġ f,a l,Ġ in,Ġa nd";

/// How GPT-2 spells each byte: one that does not print is the next free character from U+0100 on.
pub fn letters() -> Vec<char> {
    let prints = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut spare = 256..;
    let letter = |byte| {
        if prints(byte) {
            byte
        } else {
            spare.next().unwrap()
        }
    };
    (0..256)
        .map(letter)
        .map(|c| char::from_u32(c).unwrap())
        .collect()
}

/// A byte-level BPE vocabulary: GPT-2's 256 letters, then one token a merge, then the control
/// tokens: 288 in all.
struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn new() -> Self {
        let mut tokens: Vec<String> = letters().into_iter().map(String::from).collect();
        let merges: Vec<String> = MERGES.split(',').map(String::from).collect();
        tokens.extend(merges.iter().map(|pair| pair.replace(' ', "")));
        tokens.extend(CONTROL.map(String::from));
        Vocabulary { tokens, merges }
    }
}

/// splitmix64, started from a name.
pub struct Random(u64);

impl Random {
    pub fn of(name: &str, seed: u64) -> Self {
        // FNV-1a
        Random(name.bytes().fold(0xcbf29ce484222325 ^ seed, |h, byte| {
            (h ^ byte as u64).wrapping_mul(0x100000001b3)
        }))
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    /// About normal: the sum of twelve uniform numbers less six. Free of libm, so the same bits
    /// everywhere.
    pub fn normal(&mut self) -> f32 {
        (0..12)
            .map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32)
            .sum::<f32>()
            - 6.0
    }
}
