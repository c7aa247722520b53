//! The encoding linter: what a device accepts and computes wrongly, or refuses without a reason,
//! said before it gets there.
//!
//! - what only moves data keeps its encoding, and joins only what has one encoding;
//! - a KV cache goes in as it came out, in each graph and over all of them, with 0 in the middle of
//!   its codes;
//! - the second operand of a MatMul has 0 in the middle;
//! - what Softmax and Sigmoid give goes from 0 to 1;
//! - a scale lies between 1e-10 and 1e10.

use std::collections::BTreeMap;

use super::encodings::{Encodings, Grid, moved};
use super::proto::{ModelProto, NodeProto};
use super::{Checked, DOMAIN};
use crate::base::{Code, Problem, Result};
use crate::model::decoder::inputs::Cache;

/// Refuses `graphs`, which share their caches, with everything that is wrong.
pub fn lint(graphs: &[&ModelProto]) -> Result<()> {
    let findings = findings(graphs)?;
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

/// A cache at an end of a graph: which end, and its grid.
type Held = (String, Option<Grid>);

fn findings(graphs: &[&ModelProto]) -> Result<Vec<String>> {
    let mut findings = vec![];
    let mut caches: BTreeMap<(Cache, u32), Vec<Held>> = BTreeMap::new();
    for model in graphs {
        let checked = Checked::new(model)?;
        let encodings = Encodings::of(&checked)?;
        let name = &checked.graph.name;
        Linter {
            encodings: &encodings,
            graph: name,
            findings: &mut findings,
        }
        .nodes(&checked.graph.node);
        let input = |value: &str| encodings.pairs.get(value).map(|pair| pair.grid);
        let output = |value: &str| encodings.grids.get(value).copied();
        let ends = checked
            .graph
            .input
            .iter()
            .map(|end| (&end.name, input(&end.name)));
        for (end, grid) in ends.chain(
            checked
                .graph
                .output
                .iter()
                .map(|end| (&end.name, output(&end.name))),
        ) {
            if let Some(cache) = Cache::named(end) {
                caches
                    .entry(cache)
                    .or_default()
                    .push((format!("`{end}` of {name}"), grid));
            }
        }
    }
    for ends in caches.values() {
        let Some((first, grid)) = ends.first() else {
            continue;
        };
        findings.extend(ends.iter().skip(1).filter(|(_, other)| other != grid).map(
            |(end, other)| {
                format!(
                    "{first} is {}, but {end} is {}: one cache, one encoding",
                    text(*grid),
                    text(*other)
                )
            },
        ));
        let lopsided = ends
            .iter()
            .filter(|(_, grid)| grid.is_some_and(|grid| !grid.is_symmetric()));
        findings.extend(
            lopsided
                .map(|(end, grid)| format!("{end} is {}: 0 must be in the middle", text(*grid))),
        );
    }
    Ok(findings)
}

struct Linter<'a> {
    encodings: &'a Encodings<'a>,
    graph: &'a str,
    findings: &'a mut Vec<String>,
}

impl Linter<'_> {
    fn nodes(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            if !moved(node).is_empty() {
                self.movement(node);
            }
            match node.op_type.as_str() {
                _ if node.domain == DOMAIN => {}
                "Softmax" | "Sigmoid" => self.unit(node),
                "MatMul" => self.second_operand(node),
                "QuantizeLinear" => self.scale(node),
                _ => {}
            }
        }
    }

    fn say(&mut self, value: &str, what: String) {
        self.findings
            .push(format!("`{value}` of {} {what}", self.graph));
    }

    fn movement(&mut self, node: &NodeProto) {
        let grids: Vec<Option<Grid>> = moved(node)
            .iter()
            .map(|name| self.encodings.grids.get(name.as_str()).copied())
            .collect();
        let output = node.output.first().map_or("", String::as_str);
        if let Some(other) = grids.iter().find(|grid| **grid != grids[0]) {
            self.say(
                output,
                format!(
                    "joins what is {} with what is {}",
                    text(grids[0]),
                    text(*other)
                ),
            );
        }
        // Fewer bits are asked for with reason: a cache.
        let changed = |grid: &Grid, after: &Grid| grid.bits == after.bits && grid != after;
        for name in &node.output {
            let after = self
                .encodings
                .pairs
                .get(name.as_str())
                .map(|pair| pair.grid);
            if let Some((grid, after)) = grids[0]
                .zip(after)
                .filter(|(grid, after)| changed(grid, after))
            {
                let what = format!(
                    "only moves data, but goes from {} to {}",
                    text(Some(grid)),
                    text(Some(after))
                );
                self.say(name, what);
            }
        }
    }

    fn unit(&mut self, node: &NodeProto) {
        let output = node.output.first().map_or("", String::as_str);
        if let Some(pair) = self
            .encodings
            .pairs
            .get(output)
            .filter(|pair| pair.grid != Grid::unit(pair.grid.bits))
        {
            let wanted = text(Some(Grid::unit(pair.grid.bits)));
            self.say(
                pair.held,
                format!(
                    "is {}: what {} gives is {wanted}",
                    text(Some(pair.grid)),
                    node.op_type
                ),
            );
        }
    }

    fn second_operand(&mut self, node: &NodeProto) {
        let operand = node.input.get(1).map_or("", String::as_str);
        if let Some(grid) = self
            .encodings
            .grids
            .get(operand)
            .filter(|grid| !grid.is_symmetric())
        {
            let what = format!(
                "is {}: as second operand of `{}` it has 0 in the middle",
                text(Some(*grid)),
                node.name
            );
            self.say(operand, what);
        }
    }

    fn scale(&mut self, node: &NodeProto) {
        let value = node.input.first().map_or("", String::as_str);
        let scale = self.encodings.pairs.get(value).map(|pair| pair.grid.scale);
        if let Some(scale) = scale.filter(|scale| !(1e-10..=1e10).contains(scale)) {
            self.say(
                value,
                format!("has a scale of {scale:e}, which does not lie between 1e-10 and 1e10"),
            );
        }
    }
}

fn text(grid: Option<Grid>) -> String {
    grid.map_or(
        "float".into(),
        |Grid {
             bits,
             scale,
             zero_point,
         }| format!("u{bits} * {scale} from {zero_point}"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::proto::element;
    use super::super::{Builder, Value};
    use super::*;

    /// A graph `g` out of lines: `in NAME`, `out NAME`, `NAME = OP A B`, `quantize NAME BITS SCALE
    /// ZERO` (which gives `NAME.q`).
    fn graph(name: &str, lines: &str) -> ModelProto {
        let mut builder = Builder::default();
        let value = |name: &str| Value {
            name: name.into(),
            dims: vec![4, 4],
        };
        for line in lines
            .split(';')
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
        {
            match line.as_slice() {
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
                    builder.concat(name, &a, &b, 0);
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
        let models: Vec<ModelProto> = graphs
            .iter()
            .map(|(name, lines)| graph(name, lines))
            .collect();
        assert_eq!(
            findings(&models.iter().collect::<Vec<_>>()).unwrap(),
            expected
        );
    }

    #[test]
    fn what_holds_together_is_let_through() {
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
    fn everything_wrong_is_said_at_once() {
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
                "`s.q` of g is u16 * 0.5 from 0: what Sigmoid gives is u16 * 0.000015258789 from 0",
            ],
        );
    }

    #[test]
    fn a_cache_goes_in_as_it_came_out() {
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
    fn codes_that_go_astray_are_refused() {
        let mut model = graph("g", "in x; quantize x 16 0.5 0; out x.q");
        let scale = model
            .graph
            .as_mut()
            .unwrap()
            .initializer
            .iter_mut()
            .find(|t| t.name.ends_with("scale"))
            .unwrap();
        scale.data_type = element::FLOAT16;
        let problem = findings(&[&model]).unwrap_err();
        assert!(
            problem.message.contains("must have one f32 as its scale"),
            "{problem}"
        );
    }
}
