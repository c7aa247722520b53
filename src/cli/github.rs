//! Problems as annotations of GitHub Actions, which shows them at the line of the plan and on the
//! summary page of the run. <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>

use crate::base::{Problem, shown};
use crate::plan::SourceMap;

/// The workflow command for the annotation of a problem, at the place of its first label in
/// `source`.
pub(super) fn annotation(problem: &Problem, source: Option<&SourceMap>) -> String {
    let mut properties = vec![];
    if let Some((span, _)) = problem.labels.first()
        && let Some(map) = source
        && let Some((file, range)) = map.place(span)
    {
        let (line, column) = line_and_column(&file.text, range.start);
        properties.extend([
            format!("file={}", escape_property(&file.name)),
            format!("line={line}"),
            format!("col={column}"),
        ]);
    }
    properties.push(format!("title={}", escape_property(problem.code.as_str())));
    format!(
        "::error {}::{}",
        properties.join(","),
        escape_data(&problem.text())
    )
}

/// The line and column of a byte, both counted from 1.
fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = String::from_utf8_lossy(&text.as_bytes()[..byte.min(text.len())]);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Escapes the message of a command, which is one line. GitHub reverses these escapes.
fn escape_data(text: &str) -> String {
    shown(text).replace('%', "%25").replace('\n', "%0A")
}

/// Escapes a property, including the characters that separate properties.
fn escape_property(text: &str) -> String {
    escape_data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;
    use crate::plan::Source;

    fn check(problem: Problem, plan: Option<(&str, &str)>, expect: &str) {
        let mut map = None;
        if let Some((name, text)) = plan {
            let source = Source {
                name: name.into(),
                text: text.into(),
                folder: "/".into(),
            };
            map = Some(SourceMap::gather(source, &mut |_| Ok(String::new())));
        }
        assert_eq!(annotation(&problem, map.as_ref()), expect);
    }

    #[test]
    fn annotations_have_the_place_of_the_problem() {
        let unknown = || Problem::new(Code::PlanUnknownStage, "no stage `modle`");
        check(
            unknown().at(14..19, "here").help("did you mean `model`?"),
            Some(("plans/a,b.toml", "[plan]\n# ä\n  tensors = 'modle'")),
            "::error file=plans/a%2Cb.toml,line=3,col=3,title=kiln%3A%3Aplan%3A%\
             3Aunknown_stage::no stage `modle`%0Ahelp: did you mean `model`?",
        );
        let title = "title=kiln%3A%3Aplan%3A%3Aunknown_stage";
        // A label may be at the end of the text.
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
    fn a_message_is_one_escaped_line() {
        let problem =
            Problem::new(Code::of("a:b,c%"), "100 % of it,\r\nall: gone").within("failed to try");
        check(
            problem,
            None,
            "::error title=a%3Ab%2Cc%25::failed to try%0Acaused by: 100 %25 of it,\\r%0Aall: gone",
        );
    }
}
