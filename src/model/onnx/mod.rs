//! ONNX: the protobuf messages, the dialect that `graph` writes, and checks of untrusted files.

mod build;
mod check;
mod encodings;
mod functions;
mod linear;
mod lint;
pub mod proto;
mod segments;
mod slices;
mod summary;
mod weights;

pub use build::{Builder, External, Value, gain};
pub use check::{Checked, MAX_MODEL_BYTES, ValueType, decode};
pub use encodings::{Encodings, Grid, Pair, moved};
pub use functions::{DOMAIN, Function, float, int, ints};
pub use linear::{LinearLayer, LinearShape, linear_layers};
pub use lint::lint;
pub use segments::{Segment, segments};
pub use slices::{ExternalRows, sliced};
pub use summary::{Summary, element_name};
pub use weights::{WeightCall, activations, element_of, element_type, weight_uses};
