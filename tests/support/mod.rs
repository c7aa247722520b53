//! What tests share.
#![allow(dead_code, missing_docs, non_camel_case_types)]

pub mod alive;
pub mod fake;
pub mod faulty;
pub mod fetching;
pub mod gguf_file;
pub mod hub;
pub mod interpreter;
pub mod peers;
pub mod plan_text;
pub mod pottery;
pub mod processes;
pub mod quantize;
pub mod restore;
pub mod score_road;
pub mod simulation;
pub mod story;
pub mod textbook;
pub mod tiny_build;
pub mod tiny_gguf;
pub mod tiny_weights;
pub mod tools;
pub mod tree;
pub mod web;
pub mod workshop;
pub mod workspace;
