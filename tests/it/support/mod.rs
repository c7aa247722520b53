//! What tests share.
#![allow(missing_docs, non_camel_case_types)]

pub mod alive;
pub mod contexts;
pub mod event_fixtures;
pub mod fake;
pub mod faulty;
pub mod fetching;
pub mod gguf_file;
pub mod hub;
pub mod peers;
pub mod phone;
pub mod place;
pub mod plan_text;
pub mod processes;
pub mod quantize;
pub mod restore;
pub mod scripts;
pub mod simulation;
pub mod stage_runner;
pub mod test_program;
pub mod textbook;
pub mod tiny_build;
pub mod tiny_gguf;
pub mod tiny_weights;
pub mod tools;
pub mod toy_stages;
pub mod tree;
pub mod web;
pub mod workspace;
