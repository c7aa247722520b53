//! The encoding linter: finds encodings with which a device computes wrong numbers or which it
//! rejects without a reason.
//!
//! - An operator that only moves data keeps its encoding, and joins only values of one encoding.
//! - A KV cache has one encoding as input and output of all graphs, with 0 in the middle of its
//!   codes.
//! - The second operand of a MatMul has 0 in the middle.
//! - The output of Softmax and Sigmoid covers 0 to 1.
//! - A scale lies between 1e-10 and 1e10.
//! - A norm that computes in fp16 over 16 tokens is not rounded: QNN 2.51 computes wrong numbers
//!   where a layer multiplies its codes, and right ones for every other number of tokens tried (1
//!   to 272).
//! - A norm has at least 64 values: QNN 2.51 computes wrong numbers for heads of 16 and 32 columns,
//!   and right ones for 64, 96, 128, 160 and 256.

use std::collections::BTreeMap;

use super::encodings::{Encodings, Grid, moved};
use super::proto::{ModelProto, NodeProto};
use super::{Checked, DOMAIN, Function};
use crate::base::{Code, Problem, Result};
use crate::model::decoder::inputs::Cache;

/// Checks `graphs`, which share their caches. The problem lists everything that is wrong.
pub fn lint(graphs: &[&ModelProto]) -> Result<()> {
    let findings = find_errors(graphs)?;
    if findings.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} of the encodings are wrong:\n  {}",
        findings.len(),
        findings.join("\n  ")
    );
    Err(Problem::new(Code::OnnxEncodings, message)
        .help("a stage `graph` with a `calibration` writes encodings that hold together"))
}

/// The number of tokens for which QNN 2.51 computes rounded norms wrong.
const BROKEN_TOKENS: u64 = 16;

/// The fewest values of a norm that QNN 2.51 computes right.
const LEAST_NORM: u64 = 64;

/// A cache as an input or output: a description of the value, and its grid.
type CacheUse = (String, Option<Grid>);

fn find_errors(graphs: &[&ModelProto]) -> Result<Vec<String>> {
    let mut findings = vec![];
    let mut caches: BTreeMap<(Cache, u32), Vec<CacheUse>> = BTreeMap::new();
    for model in graphs {
        let checked = Checked::new(model)?;
        let encodings = Encodings::of(&checked)?;
        let graph = &checked.graph.name;
        let mut linter = Linter {
            checked: &checked,
            encodings: &encodings,
            graph,
            findings: &mut findings,
        };
        for node in &checked.graph.node {
            linter.check_node(node);
        }
        for value in &checked.graph.input {
            if let Some(cache) = Cache::named(&value.name) {
                let grid = encodings
                    .pairs
                    .get(value.name.as_str())
                    .map(|pair| pair.grid);
                let uses = caches.entry(cache).or_default();
                uses.push((format!("`{}` of {graph}", value.name), grid));
            }
        }
        for value in &checked.graph.output {
            if let Some(cache) = Cache::named(&value.name) {
                let grid = encodings.grids.get(value.name.as_str()).copied();
                let uses = caches.entry(cache).or_default();
                uses.push((format!("`{}` of {graph}", value.name), grid));
            }
        }
    }
    for uses in caches.values() {
        check_cache(uses, &mut findings);
    }
    Ok(findings)
}

fn check_cache(uses: &[CacheUse], findings: &mut Vec<String>) {
    let Some((first, grid)) = uses.first() else {
        return;
    };
    for (other, other_grid) in uses {
        if other_grid != grid {
            findings.push(format!(
                "{first} is {}, but {other} is {}: one cache, one encoding",
                text(*grid),
                text(*other_grid)
            ));
        }
    }
    for (value, grid) in uses {
        if let Some(grid) = grid
            && !grid.is_symmetric()
        {
            findings.push(format!(
                "{value} is {}: 0 must be in the middle",
                text(Some(*grid))
            ));
        }
    }
}

struct Linter<'a> {
    checked: &'a Checked<'a>,
    encodings: &'a Encodings<'a>,
    graph: &'a str,
    findings: &'a mut Vec<String>,
}

impl Linter<'_> {
    fn check_node(&mut self, node: &NodeProto) {
        if !moved(node).is_empty() {
            self.check_movement(node);
        }
        match node.op_type.as_str() {
            _ if Function::of(node) == Some(Function::RmsNorm) => self.check_norm(node),
            _ if node.domain == DOMAIN => {}
            "Softmax" | "Sigmoid" => self.check_range(node, Grid::unit),
            "Tanh" => self.check_range(node, Grid::signed_unit),
            "MatMul" => self.check_second_operand(node),
            "QuantizeLinear" => self.check_scale(node),
            _ => {}
        }
    }

    fn add_finding(&mut self, value: &str, what: String) {
        self.findings
            .push(format!("`{value}` of {} {what}", self.graph));
    }

    /// The grid of `value`, if it is on one.
    fn grid(&self, value: &str) -> Option<Grid> {
        self.encodings.grids.get(value).copied()
    }

    /// The grid to which `value` is rounded, if it is.
    fn rounded_to(&self, value: &str) -> Option<Grid> {
        self.encodings.pairs.get(value).map(|pair| pair.grid)
    }

    fn check_movement(&mut self, node: &NodeProto) {
        let inputs = moved(node);
        let first = self.grid(&inputs[0]);
        for input in inputs {
            let grid = self.grid(input);
            if grid != first {
                let (first, other) = (text(first), text(grid));
                let what = format!("joins what is {first} with what is {other}");
                self.add_finding(first_name(&node.output), what);
                break;
            }
        }
        let Some(before) = first else {
            return;
        };
        for name in &node.output {
            // A value may be rounded to fewer bits: that is how a cache is written.
            if let Some(after) = self.rounded_to(name)
                && after.bits == before.bits
                && after != before
            {
                let (before, after) = (text(first), text(Some(after)));
                let what = format!("only moves data, but goes from {before} to {after}");
                self.add_finding(name, what);
            }
        }
    }

    /// Checks the output of an operator that the device has for one grid only.
    fn check_range(&mut self, node: &NodeProto, grid: fn(u32) -> Grid) {
        let Some(&pair) = self.encodings.pairs.get(first_name(&node.output)) else {
            return;
        };
        let grid = grid(pair.grid.bits);
        if pair.grid != grid {
            let (found, expected) = (text(Some(pair.grid)), text(Some(grid)));
            let what = format!("is {found}: the output of {} is {expected}", node.op_type);
            self.add_finding(pair.dequantized, what);
        }
    }

    fn check_second_operand(&mut self, node: &NodeProto) {
        let operand = first_name(node.input.get(1..).unwrap_or_default());
        if let Some(grid) = self.grid(operand)
            && !grid.is_symmetric()
        {
            let what = format!(
                "is {}: as second operand of `{}` it has 0 in the middle",
                text(Some(grid)),
                node.name
            );
            self.add_finding(operand, what);
        }
    }

    fn check_norm(&mut self, node: &NodeProto) {
        let y = first_name(&node.output);
        let mut dims = match self.checked.types.get(y) {
            Some(value_type) => value_type.dims.iter().rev(),
            None => [].iter().rev(),
        };
        let (width, tokens) = (dims.next(), dims.next());
        if let Some(width) = width
            && *width < LEAST_NORM
        {
            let what = format!(
                "is a norm over {width} values, which the device computes wrong: at least \
                 {LEAST_NORM} are needed"
            );
            self.add_finding(y, what);
        }
        let is_rounded = self.rounded_to(y).is_some() && !self.encodings.norm_on_codes(node);
        if is_rounded && tokens == Some(&BROKEN_TOKENS) {
            let what = format!(
                "is rounded after a norm in fp16 over {BROKEN_TOKENS} tokens, which the device \
                 computes wrong: choose another `prefill`"
            );
            self.add_finding(y, what);
        }
    }

    fn check_scale(&mut self, node: &NodeProto) {
        let value = first_name(&node.input);
        if let Some(Grid { scale, .. }) = self.rounded_to(value)
            && !(1e-10..=1e10).contains(&scale)
        {
            self.add_finding(
                value,
                format!("has a scale of {scale:e}, which does not lie between 1e-10 and 1e10"),
            );
        }
    }
}

/// The first of `names`; empty if there is none.
fn first_name(names: &[String]) -> &str {
    match names.first() {
        Some(name) => name,
        None => "",
    }
}

fn text(grid: Option<Grid>) -> String {
    match grid {
        Some(Grid {
            bits,
            scale,
            zero_point,
        }) => format!("u{bits} * {scale} from {zero_point}"),
        None => "float".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::element;
    use super::super::{Builder, Value, float};
    use super::*;

    /// A graph from statements: `in NAME`, `out NAME`, `NAME = OP A B`, `quantize NAME BITS SCALE
    /// ZERO` (whose result is `NAME.q`).
    fn graph(name: &str, lines: &str) -> ModelProto {
        let mut builder = Builder::default();
        let value = |name: &str| Value {
            name: name.into(),
            dims: vec![4, 4],
        };
        for line in lines.split(';') {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["in", name] => drop(builder.input(name, element::FLOAT, &[4, 4])),
                ["out", name] => builder.output(&value(name)),
                ["quantize", name, bits, scale, zero_point] => {
                    let bits = bits.parse().unwrap();
                    let grid = Grid {
                        bits,
                        scale: scale.parse().unwrap(),
                        zero_point: zero_point.parse().unwrap(),
                    };
                    builder.quantize(&value(name), grid, &format!("{name}.q"));
                }
                [name, "=", "Concat", a, b] => {
                    let (a, b) = (
                        Value {
                            dims: vec![2, 4],
                            ..value(a)
                        },
                        Value {
                            dims: vec![2, 4],
                            ..value(b)
                        },
                    );
                    builder.concat(name, &[&a, &b], 0);
                }
                [name, "=", "Reshape", a] => drop(builder.reshape(name, &value(a), &[4, 4])),
                [name, "=", "Softmax", a] => drop(builder.softmax(name, &value(a))),
                [name, "=", "Sigmoid", a] => drop(builder.sigmoid(name, &value(a))),
                [name, "=", "MatMul", a, b] => drop(builder.matmul(name, &value(a), &value(b))),
                other => panic!("{other:?}"),
            }
        }
        builder.finish(name)
    }

    #[track_caller]
    fn check(graphs: &[(&str, &str)], expected: &[&str]) {
        let mut models = vec![];
        for (name, lines) in graphs {
            models.push(graph(name, lines));
        }
        let models: Vec<&ModelProto> = models.iter().collect();
        assert_eq!(find_errors(&models).unwrap(), expected);
    }

    #[test]
    fn consistent_encodings_are_accepted() {
        check(
            &[
                (
                    "a",
                    "in past_key_0_in; quantize past_key_0_in 8 0.1 128; in x; quantize x 16 0.5 \
                     32768; y = Reshape x.q; m = MatMul x.q y; p = Softmax m; quantize p 16 \
                     0.0000152587890625 0; k = Reshape y; quantize k 8 0.1 128; past_key_0_out = \
                     Reshape k.q; out past_key_0_out",
                ),
                (
                    "b",
                    "in past_key_0_in; quantize past_key_0_in 8 0.1 128; z = Reshape \
                     past_key_0_in.q; out z",
                ),
            ],
            &[],
        );
    }

    #[test]
    fn all_findings_are_listed() {
        check(
            &[(
                "g",
                "in x; quantize x 16 0.5 0; in y; quantize y 16 0.25 0; c = Concat x.q y.q; r = \
                 Reshape x.q; quantize r 16 0.125 7; m = MatMul x.q y.q; quantize m 16 1e-12 0; s \
                 = Sigmoid m; quantize s 16 0.5 0; out s",
            )],
            &[
                "`c` of g joins what is u16 * 0.5 from 0 with what is u16 * 0.25 from 0",
                "`r` of g only moves data, but goes from u16 * 0.5 from 0 to u16 * 0.125 from 7",
                "`y.q` of g is u16 * 0.25 from 0: as second operand of `m` it has 0 in the middle",
                "`m` of g has a scale of 1e-12, which does not lie between 1e-10 and 1e10",
                "`s.q` of g is u16 * 0.5 from 0: the output of Sigmoid is u16 * 0.000015258789 \
                 from 0",
            ],
        );
    }

    #[test]
    fn a_norm_over_few_values_or_rounded_over_16_tokens_is_refused() {
        let findings = |tokens, width, rounded: &[&str]| {
            let mut grids = BTreeMap::new();
            for name in rounded {
                grids.insert(name.to_string(), Grid::unit(16));
            }
            let mut builder = Builder::rounding(grids);
            let dims = [1, 1, tokens, width];
            let x = builder.input("x", element::FLOAT, &dims);
            let ones = vec![1.0; width as usize];
            let gamma = builder.constant("gamma", &[width], &ones);
            let y = builder.call(
                Function::RmsNorm,
                "y",
                &[&x, &gamma],
                vec![float("epsilon", 1e-6)],
                dims.into(),
            );
            builder.output(&y);
            find_errors(&[&builder.finish("g")]).unwrap()
        };
        assert_eq!(
            findings(16, 64, &["y"]),
            [
                "`y.exact` of g is rounded after a norm in fp16 over 16 tokens, which the device \
                 computes wrong: choose another `prefill`"
            ]
        );
        assert!(findings(16, 64, &[]).is_empty());
        assert!(findings(17, 64, &["y"]).is_empty());
        assert!(findings(16, 64, &["x", "y"]).is_empty(), "a norm on codes");
        assert_eq!(
            findings(8, 32, &[]),
            [
                "`y` of g is a norm over 32 values, which the device computes wrong: at least 64 \
                 are needed"
            ]
        );
    }

    #[test]
    fn a_cache_has_one_encoding() {
        check(
            &[
                (
                    "a",
                    "in past_key_0_in; quantize past_key_0_in 8 0.1 128; k = Reshape \
                     past_key_0_in.q; quantize k 8 0.1 128; past_key_0_out = Reshape k.q; out \
                     past_key_0_out",
                ),
                (
                    "b",
                    "in past_key_0_in; past_key_0_out = Reshape past_key_0_in; out past_key_0_out",
                ),
                (
                    "c",
                    "in past_key_0_in; quantize past_key_0_in 8 0.1 100; out past_key_0_in.q",
                ),
            ],
            &[
                "`past_key_0_in` of a is u8 * 0.1 from 128, but `past_key_0_in` of b is float: \
                 one cache, one encoding",
                "`past_key_0_in` of a is u8 * 0.1 from 128, but `past_key_0_out` of b is float: \
                 one cache, one encoding",
                "`past_key_0_in` of a is u8 * 0.1 from 128, but `past_key_0_in` of c is u8 * 0.1 \
                 from 100: one cache, one encoding",
                "`past_key_0_in` of c is u8 * 0.1 from 100: 0 must be in the middle",
            ],
        );
    }

    #[test]
    fn an_f16_scale_is_rejected() {
        let mut model = graph("g", "in x; quantize x 16 0.5 0; out x.q");
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            if tensor.name.ends_with("scale") {
                tensor.data_type = element::FLOAT16;
            }
        }
        let problem = find_errors(&[&model]).unwrap_err();
        assert!(
            problem.message.contains("must have one f32 as its scale"),
            "{problem}"
        );
    }
}
