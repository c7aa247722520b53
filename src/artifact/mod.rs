//! What stages hand over: the names and schemas of parts that more than one stage reads or writes, and
//! how to read them.

pub mod bands;
pub mod bundle;
pub mod choice;
pub mod context;
pub mod generation;
pub mod layers;
pub mod reference;
pub mod score;
pub mod sensitivity;
pub mod tensors;
pub mod tools;
pub mod weight;
