//! Problems as GitHub Actions shows them: at the line of the plan, and on the summary page of the
//! run. <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>

use crate::base::{Problem, shown};
use crate::plan::SourceMap;

/// The workflow command that makes an annotation of a problem; `source` is name and text of the
/// plan it points into.
pub(super) fn annotation(problem: &Problem, source: Option<&SourceMap>) -> String {
    let mut properties = vec![];
    let label = problem
        .labels
        .first()
        .and_then(|(span, _)| source?.place(span));
    if let Some((file, span)) = label {
        let (line, column) = place(&file.text, span.start);
        properties.extend([
            format!("file={}", property(&file.name)),
            format!("line={line}"),
            format!("col={column}"),
        ]);
    }
    properties.push(format!("title={}", property(problem.code.as_str())));
    format!(
        "::error {}::{}",
        properties.join(","),
        data(&problem.text())
    )
}

/// Line and column of a byte, both from 1.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = String::from_utf8_lossy(&text.as_bytes()[..byte.min(text.len())]);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// A command is one line; GitHub undoes these two.
fn data(text: &str) -> String {
    shown(text).replace('%', "%25").replace('\n', "%0A")
}

/// In a property, what separates properties is escaped too.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;
    use crate::plan::Source;

    fn check(problem: Problem, plan: Option<(&str, &str)>, expect: &str) {
        let source = plan.map(|(name, text)| {
            let source = Source {
                name: name.into(),
                text: text.into(),
                folder: "/".into(),
            };
            SourceMap::gather(source, &mut |_| Ok(String::new()))
        });
        assert_eq!(annotation(&problem, source.as_ref()), expect);
    }

    #[test]
    fn problems_are_annotations_at_their_place() {
        let unknown = || Problem::new(Code::PlanUnknownStage, "no stage `modle`");
        check(
            unknown().at(14..19, "here").help("did you mean `model`?"),
            Some(("plans/a,b.toml", "[plan]\n# ä\n  tensors = 'modle'")),
            "::error file=plans/a%2Cb.toml,line=3,col=3,title=kiln%3A%3Aplan%3A%\
             3Aunknown_stage::no stage `modle`%0Ahelp: did you mean `model`?",
        );
        let title = "title=kiln%3A%3Aplan%3A%3Aunknown_stage";
        // A label may stand at the end of the text.
        check(
            unknown().at(2..2, ""),
            Some(("p", "a\n")),
            &format!("::error file=p,line=2,col=1,{title}::no stage `modle`"),
        );
        check(
            unknown(),
            Some(("p", "a")),
            &format!("::error {title}::no stage `modle`"),
        );
        check(
            unknown().at(0..1, ""),
            None,
            &format!("::error {title}::no stage `modle`"),
        );
    }

    #[test]
    fn a_message_stays_one_line_and_text() {
        let problem =
            Problem::new(Code::of("a:b,c%"), "100 % of it,\r\nall: gone").within("failed to try");
        check(
            problem,
            None,
            "::error title=a%3Ab%2Cc%25::failed to try%0Acaused by: 100 %25 of it,\\r%0Aall: gone",
        );
    }
}
