//! ggml's storage types: decoded bit for bit as ggml does, and split into codes, scales and
//! offsets. One file per format; `types.rs` lists them.

mod bits;
mod blockwise;
mod codebook;
mod grids;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nvfp4;
pub(super) mod plain;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod tq1_0;
mod tq2_0;
mod types;
mod wide;

pub use plain::first_non_finite;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;
pub use types::GgmlType;
pub use wide::WideNumbers;
