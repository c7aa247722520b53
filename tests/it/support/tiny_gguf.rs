//! Tiny but valid models: `TinyGguf::qwen2().write()` returns the bytes of a GGUF that every stage
//! accepts.
//!
//! The values of a tensor depend only on its name and the seed. The models are untrained, so their
//! text is noise.

use super::gguf_file::{GgufFile, Value};
use super::quantize::{Quant, encode};

/// The properties of a tiny model. Every setter has a default that fits the others.
#[derive(Clone, Debug)]
pub struct TinyGguf {
    architecture: &'static str,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    /// The width of a head, if it is not `hidden / heads`.
    head_dim: Option<usize>,
    ffn: usize,
    matrices: Quant,
    types: Vec<(String, Quant)>,
    bias: bool,
    large_biases: bool,
    tied: bool,
    /// Further keys without the name of the architecture.
    keys: Vec<(&'static str, Value)>,
    /// Tensors of divisors of RoPE, without `.weight`.
    rope_divisors: Vec<(&'static str, Vec<f32>)>,
    /// Whether `lpbq-32-shifted` can hold the matrices exactly.
    shifted: bool,
    seed: u64,
}

impl TinyGguf {
    /// llama: two layers, 4 heads over 2, head_dim 16, interleaved RoPE rows, no biases, tied
    /// embeddings, Q4_1 like SmolLM2.
    pub fn llama() -> Self {
        TinyGguf {
            architecture: "llama",
            bias: false,
            tied: true,
            matrices: Quant::Q4_1,
            ..TinyGguf::qwen2()
        }
    }

    /// qwen2: two layers, 4 heads over 2, head_dim 16, biases of q, k and v, a separate
    /// `output.weight`, Q4_0.
    pub fn qwen2() -> Self {
        TinyGguf {
            architecture: "qwen2",
            layers: 2,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: None,
            ffn: 128,
            matrices: Quant::Q4_0,
            types: vec![],
            bias: true,
            large_biases: false,
            tied: false,
            keys: vec![],
            rope_divisors: vec![],
            shifted: false,
            seed: 1,
        }
    }

    /// granite: llama with all four factors.
    pub fn granite() -> Self {
        TinyGguf {
            architecture: "granite",
            ..TinyGguf::llama()
        }
    }

    /// olmo2: norms after the branches, and of all heads of q and k; a separate `output.weight`.
    pub fn olmo2() -> Self {
        TinyGguf {
            architecture: "olmo2",
            kv_heads: 4,
            bias: false,
            ..TinyGguf::qwen2()
        }
    }

    /// qwen3: heads of 64 columns, together four times as wide as the residual stream, with norms of
    /// q and k.
    pub fn qwen3() -> Self {
        TinyGguf {
            architecture: "qwen3",
            head_dim: Some(64),
            bias: false,
            tied: true,
            ..TinyGguf::qwen2()
        }
    }

    /// smollm3: llama with four layers, the last of which has no RoPE.
    pub fn smollm3() -> Self {
        TinyGguf {
            architecture: "smollm3",
            layers: 4,
            ..TinyGguf::llama()
        }
    }

    /// phi3: q, k and v in one matrix, gate and up in another, 12 of 16 columns of a head rotated, and
    /// LongRoPE for contexts above 16.
    pub fn phi3() -> Self {
        TinyGguf {
            architecture: "phi3",
            bias: false,
            ..TinyGguf::qwen2()
        }
        .keys(&[
            ("rope.dimension_count", 12.into()),
            ("rope.scaling.original_context_length", 16.into()),
            ("rope.scaling.attn_factor", 1.25.into()),
            ("attention.sliding_window", 8.into()),
        ])
        .divisors("rope_factors_long", &[1.0, 1.0, 1.25, 2.0, 4.0, 8.0])
        .divisors("rope_factors_short", &[1.0, 1.0, 1.0, 1.0, 1.5, 1.75])
    }

    /// gemma2: norms around the branches, GELU, low caps of scores and logits, and an embedding
    /// that is scaled.
    pub fn gemma2() -> Self {
        TinyGguf {
            architecture: "gemma2",
            head_dim: Some(32),
            bias: false,
            tied: true,
            ..TinyGguf::qwen2()
        }
        .keys(&[
            ("attn_logit_softcapping", 0.75.into()),
            ("final_logit_softcapping", 1.5.into()),
            ("attention.sliding_window", 32.into()),
        ])
    }

    /// gemma3: seven layers, of which all but the sixth have a sliding window and a RoPE of their
    /// own, norms around the branches and of each head, GELU.
    pub fn gemma3() -> Self {
        TinyGguf {
            architecture: "gemma3",
            layers: 7,
            head_dim: Some(64),
            keys: vec![],
            ..TinyGguf::gemma2()
        }
        .keys(&[
            ("rope.freq_base", 1e6.into()),
            ("rope.scaling.type", "linear".into()),
            ("rope.scaling.factor", 8.0.into()),
            ("attention.sliding_window", 32.into()),
        ])
    }

    /// This file with more keys and without their defaults.
    pub fn keys(mut self, keys: &[(&'static str, Value)]) -> Self {
        self.keys.extend(keys.iter().cloned());
        self
    }

    /// What the frequencies of RoPE are divided by: the numbers of `NAME.weight`.
    pub fn divisors(mut self, name: &'static str, divisors: &[f32]) -> Self {
        self.rope_divisors.push((name, divisors.to_vec()));
        self
    }

    /// One model of each architecture.
    pub fn all() -> Vec<Self> {
        vec![
            TinyGguf::gemma2(),
            TinyGguf::gemma3(),
            TinyGguf::granite(),
            TinyGguf::llama(),
            TinyGguf::olmo2(),
            TinyGguf::phi3(),
            TinyGguf::qwen2(),
            TinyGguf::qwen3(),
            TinyGguf::smollm3(),
        ]
    }

    /// Its name in the file.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Number of layers.
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// Widths of the residual stream and of the feed-forward layer. Q6_K needs multiples of 256.
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

    /// Biases as in trained Qwen2 models: hundreds for k and tens for q, in the slowest quarter of
    /// the columns of each head.
    pub fn large_biases(mut self) -> Self {
        self.large_biases = true;
        self
    }

    /// Whether the head is the embedding.
    pub fn tied(mut self, tied: bool) -> Self {
        self.tied = tied;
        self
    }

    /// Matrices of [`shifted_rows`], which `lpbq-32-shifted` and Q4_0 hold exactly.
    pub fn shifted(mut self) -> Self {
        self.shifted = true;
        self
    }

    /// The seed of the weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The bytes of the file.
    pub fn write(&self) -> Vec<u8> {
        self.file().write()
    }

    /// The file, for tests that change it before they write it.
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
        if let Some(width) = self.head_dim {
            file.set(&arch("attention.key_length"), width as u32);
            file.set(&arch("attention.value_length"), width as u32);
        }
        if self.architecture == "granite" {
            file.set(&arch("embedding_scale"), 12.0);
            file.set(&arch("attention.scale"), 0.2);
            file.set(&arch("residual_scale"), 0.375);
            file.set(&arch("logit_scale"), 3.0);
        }
        for (key, value) in &self.keys {
            file.set(&arch(key), value.clone());
        }
        for (name, divisors) in &self.rope_divisors {
            let bytes = divisors.iter().flat_map(|number| number.to_le_bytes());
            let name = format!("{name}.weight");
            let shape = [divisors.len() as u64];
            file.tensor(&name, &shape, Quant::F32 as u32, bytes.collect());
        }
        file.set("tokenizer.ggml.model", "gpt2");
        file.set(
            "tokenizer.ggml.pre",
            match self.architecture {
                "qwen2" | "qwen3" => "qwen2",
                _ => "smollm",
            },
        );
        let count = vocabulary.tokens.len();
        let is_control = |id: usize| id >= count - CONTROL.len();
        let token_type = |id| if is_control(id) { 3 } else { 1 };
        let token_types = (0..count).map(token_type).collect();
        file.set("tokenizer.ggml.token_type", Value::I32s(token_types));
        file.set("tokenizer.ggml.tokens", Value::Strings(vocabulary.tokens));
        file.set("tokenizer.ggml.merges", Value::Strings(vocabulary.merges));
        file.set("tokenizer.ggml.bos_token_id", count as u32 - 2);
        file.set("tokenizer.ggml.eos_token_id", count as u32 - 1);
        file.set("tokenizer.ggml.add_bos_token", Value::Bool(0));
        for (name, rows, columns) in self.tensors(count) {
            self.add(&mut file, &name, rows, columns);
        }
        file
    }

    /// Name, rows (0 for a vector) and columns of every tensor.
    fn tensors(&self, vocab: usize) -> Vec<(String, usize, usize)> {
        let (hidden, ffn) = (self.hidden, self.ffn);
        let head_dim = self.head_dim.unwrap_or(hidden / self.heads);
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
            let is_gemma = self.architecture.starts_with("gemma");
            let has_norm_after = is_gemma || self.architecture == "olmo2";
            let has_norm_before = self.architecture != "olmo2";
            let is_fused = self.architecture == "phi3";
            if has_norm_before {
                add("attn_norm.weight", 0, hidden);
            }
            match self.architecture {
                "olmo2" => {
                    add("attn_q_norm.weight", 0, q);
                    add("attn_k_norm.weight", 0, kv);
                }
                "qwen3" | "gemma3" => {
                    add("attn_q_norm.weight", 0, head_dim);
                    add("attn_k_norm.weight", 0, head_dim);
                }
                _ => {}
            }
            let rows_of_matrices = match is_fused {
                true => vec![("attn_qkv", q + 2 * kv)],
                false => vec![("attn_q", q), ("attn_k", kv), ("attn_v", kv)],
            };
            for (name, rows) in rows_of_matrices {
                add(&format!("{name}.weight"), rows, hidden);
                if self.bias {
                    add(&format!("{name}.bias"), 0, rows);
                }
            }
            add("attn_output.weight", hidden, q);
            if has_norm_after {
                add("post_attention_norm.weight", 0, hidden);
                add("post_ffw_norm.weight", 0, hidden);
            }
            if has_norm_before {
                add("ffn_norm.weight", 0, hidden);
            }
            if is_fused {
                add("ffn_up.weight", 2 * ffn, hidden);
            } else {
                add("ffn_gate.weight", ffn, hidden);
                add("ffn_up.weight", ffn, hidden);
            }
            add("ffn_down.weight", hidden, ffn);
        }
        all
    }

    fn add(&self, file: &mut GgufFile, name: &str, rows: usize, columns: usize) {
        let quant = match self.types.iter().find(|(tensor, _)| tensor == name) {
            Some((_, quant)) => *quant,
            None if rows == 0 => Quant::F32,
            None => self.matrices,
        };
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
        let value = |i| centre + spread(i) * random.normal();
        let values: Vec<f32> = if self.shifted && rows > 0 {
            shifted_rows(&mut Random::of(name, self.seed), rows, columns)
        } else {
            (0..rows.max(1) * columns).map(value).collect()
        };
        let dims = if rows == 0 {
            vec![columns as u64]
        } else {
            vec![columns as u64, rows as u64]
        };
        file.tensor(name, &dims, quant as u32, encode(quant, &values));
    }
}

/// Rows of blocks of 32 values: a scale of few bits per row, times an integer from 1 to 16 per
/// block, times codes from -8 to 7 or from -7 to 8. Every block has the code of magnitude 8, and
/// the first one of a row the integer 16.
pub fn shifted_rows(random: &mut Random, rows: usize, columns: usize) -> Vec<f32> {
    let mut values = vec![];
    for _ in 0..rows {
        let scale = (64 + random.bits() % 64) as f32 / (8192.0 * (columns as f32).sqrt().floor());
        let scale = f32::from_bits(scale.to_bits() & !0x1ffff);
        for block in 0..columns / 32 {
            let integer = if block == 0 {
                16
            } else {
                1 + random.bits() % 16
            };
            let sign = if random.bits().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            };
            let largest = random.bits() % 32;
            for index in 0..32 {
                let code = match index {
                    _ if index == largest => 0,
                    _ => random.bits() % 16,
                };
                values.push((code as f32 - 8.0) * sign * scale * integer as f32);
            }
        }
    }
    values
}

const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: &str = "Ġ t,h e,i n,r e,o n,Ġ a,Ġt he,e r,a t,Ġ o,e n,n d,Ġ s,i t,Ġ w,e s,Ġo f,o \
                      r,Ġ b,a n,Ġ c,i s,in g,Ġ p,e d,Ġ f,a l,Ġ in,Ġa nd";

/// The character that GPT-2 uses for each byte: bytes that do not print are the next free
/// characters from U+0100 on.
pub fn byte_characters() -> Vec<char> {
    let mut spare = 256..;
    let mut characters = vec![];
    for byte in 0..256 {
        let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if is_printable {
            byte
        } else {
            spare.next().unwrap()
        };
        characters.push(char::from_u32(code).unwrap());
    }
    characters
}

/// A byte-level BPE vocabulary of 288 tokens: the 256 bytes of GPT-2, one token per merge, and the
/// control tokens.
struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn new() -> Self {
        let mut tokens: Vec<String> = byte_characters().into_iter().map(String::from).collect();
        let merges: Vec<String> = MERGES.split(',').map(String::from).collect();
        tokens.extend(merges.iter().map(|pair| pair.replace(' ', "")));
        tokens.extend(CONTROL.map(String::from));
        Vocabulary { tokens, merges }
    }
}

/// splitmix64, seeded with a name.
pub struct Random(u64);

impl Random {
    pub fn of(name: &str, seed: u64) -> Self {
        // FNV-1a
        let mut hash = 0xcbf29ce484222325 ^ seed;
        for byte in name.bytes() {
            hash = (hash ^ byte as u64).wrapping_mul(0x100000001b3);
        }
        Random(hash)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    /// Approximately normal: the sum of twelve uniform numbers minus six. It does not use libm, so
    /// the bits are the same everywhere.
    pub fn normal(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..12 {
            sum += (self.bits() >> 40) as f32 / (1u64 << 24) as f32;
        }
        sum - 6.0
    }
}
