//! Names and schemas of the parts that more than one stage reads or writes, and how to read them.

pub mod assignment;
pub mod bands;
pub mod bundle;
pub mod context;
pub mod device;
pub mod estimate;
pub mod evaluation;
pub mod generation;
pub mod layer_evaluation;
pub mod model;
pub mod reference;
pub mod sensitivity;
pub mod tensors;
pub mod tools;
pub mod weight;
