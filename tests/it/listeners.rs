//! The output of each listener for the same build.

use crate::support::event_fixtures::{
    begun, build_events, emit, emit_untimed, interrupted_build_events, part, started,
};
use kiln::events::{Board, Event, JsonLines, LogReader, LoggedEvent, Plain, StageTally, Summary};

#[test]
fn the_plain_log_has_a_few_lines_per_stage() {
    let mut text = vec![];
    emit_untimed(&mut Plain::new(&mut text), &build_events());
    let expected = "\
done   text: 3 parts, from the cache
done   source: 1 part, from the cache
begin  weights: stage version: 1 -> 2
retry  weights/b: attempt 1 failed: no answer
       weights/b: 11.50 s
done   weights: 2 parts, 1 from the cache, 1 ran in 11.50 s
begin  graph: first build
failed graph: failed to write
skip   dlc: a stage that it depends on failed
";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}

fn json_lines(events: &[(u64, Event)]) -> String {
    let mut text = vec![];
    emit(&mut JsonLines::new(&mut text), events);
    String::from_utf8(text).unwrap()
}

#[test]
fn json_lines_round_trip() {
    let text = json_lines(&build_events());
    let hit = r#"{"event":"hit","part":{"stage":"weights","part":"a"},"at_ms":5}"#;
    assert!(text.lines().any(|line| line == hit), "{text}");
    assert!(
        text.starts_with(r#"{"event":"begun","schema":2,"#),
        "{text}"
    );
    let mut events = vec![];
    for logged in LogReader::new(text.as_bytes()) {
        let LoggedEvent { at_ms, event } = logged.unwrap();
        events.push((at_ms, event));
    }
    assert_eq!(events, build_events());
}

/// A writer with space for this number of bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(left) = self.0.checked_sub(bytes.len()) else {
            return Err(std::io::ErrorKind::StorageFull.into());
        };
        self.0 = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn write_errors_of_the_json_log_are_reported() {
    let check = |bytes| {
        let mut lines = JsonLines::new(Full(bytes));
        emit(&mut lines, &build_events());
        lines.failed().map(|error| error.kind())
    };
    assert_eq!(check(1 << 20), None);
    assert_eq!(check(300), Some(std::io::ErrorKind::StorageFull));
}

#[test]
fn the_summary_counts_by_stage_in_plan_order() {
    let mut summary = Summary::default();
    emit_untimed(&mut summary, &build_events());
    let names: Vec<&str> = summary
        .stages
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["text", "source", "weights", "graph", "dlc"]);
    let unchanged = StageTally {
        parts: 3,
        hits: 3,
        completed: true,
        ..Default::default()
    };
    assert_eq!(summary.stage("text"), Some(&unchanged));
    let weights = StageTally {
        parts: 2,
        hits: 1,
        started: 1,
        ran: 1,
        completed: true,
        took_ms: 11_500,
        output_bytes: 10,
        ..Default::default()
    };
    assert_eq!(summary.stage("weights"), Some(&weights));
    assert_eq!(summary.total(|stage| stage.failed), 1);
    assert!(summary.stage("dlc").unwrap().skipped);
}

/// A completed stage, a stage of 300 parts of which 200 are running, a waiting stage, and a running
/// stage of one part.
fn busy_board() -> Board {
    let mut board = Board::default();
    let mut emit_at = |at_ms, event| emit(&mut board, &[(at_ms, event)]);
    emit_at(0, begun(&["source", "weights", "halves", "npu", "report"]));
    emit_at(
        1,
        Event::Unchanged {
            stage: "source".into(),
            parts: 1,
        },
    );
    emit_at(
        2,
        Event::Expanded {
            stage: "weights".into(),
            parts: 300,
        },
    );
    emit_at(
        3,
        Event::Expanded {
            stage: "halves".into(),
            parts: 300,
        },
    );
    emit_at(
        4,
        Event::Expanded {
            stage: "npu".into(),
            parts: 1,
        },
    );
    for index in 0..300 {
        let tensor = part("weights", &format!("blk.{index}.attn_q.weight"));
        match index {
            0..75 => emit_at(10, Event::Hit { part: tensor }),
            75..275 => emit_at(1000 + index, started(tensor)),
            _ => {}
        }
    }
    emit_at(2000, started(part("npu", "")));
    let slow = part("weights", "blk.75.attn_q.weight");
    emit_at(
        2500,
        Event::Progress {
            part: slow,
            done: 1_000_000,
            total: 4_000_000,
            unit: "B".into(),
        },
    );
    board
}

fn check_board(board: &Board, width: usize, height: usize, expect: &str) {
    let lines = board.lines(3_000, width, height).join("\n");
    assert_eq!(lines, expect.trim_matches('\n'));
}

#[test]
fn the_board_summarizes_300_running_parts() {
    check_board(
        &busy_board(),
        80,
        24,
        "
weights  ━━━━╸             75/300, 200 running
npu      1.00 s
halves   ╸                 0/300, waiting
  weights/blk.75.attn_q.weight  ━━━━╸             1.0 MB of 4.0 MB, 1.93 s
  weights/blk.76.attn_q.weight  1.92 s
  weights/blk.77.attn_q.weight  1.92 s
  weights/blk.78.attn_q.weight  1.92 s
76 of 602 parts: 76 from the cache, 0 ran; 3.00 s",
    );
    // In a narrow terminal there are no bars, and names are shortened.
    check_board(
        &busy_board(),
        30,
        6,
        "
weights  75/300, 200 running
npu      1.00 s
halves   0/300, waiting
  weights…  1.0 MB of 4.0 MB,…
76 of 602 parts: 76 from the …",
    );
    check_board(
        &busy_board(),
        80,
        4,
        "weights  ━━━━╸             75/300, 200 running\nand 2 more stages\n76 of 602 parts: 76 \
         from the cache, 0 ran; 3.00 s",
    );
}

#[test]
fn the_board_fits_any_terminal_size() {
    let board = busy_board();
    for width in 1..100 {
        for height in 0..30 {
            let lines = board.lines(3_000, width, height);
            let count = lines.len();
            assert!(count < height.max(2), "{count} lines at {width}x{height}");
            for line in &lines {
                let length = line.chars().count();
                assert!(length <= width, "{line:?} at {width}x{height}");
            }
        }
    }
}

#[test]
fn finished_and_failed_parts_leave_the_board() {
    let mut board = Board::default();
    emit(&mut board, &interrupted_build_events());
    check_board(
        &board,
        40,
        24,
        "weights  1/2, 1 running\n  weights/b  2.99 s, attempt 2\n5 of 6 parts: 5 from the cache, \
         0 ran; …",
    );
    let mut board = Board::default();
    emit(&mut board, &build_events());
    check_board(
        &board,
        80,
        24,
        "6 of 7 parts: 5 from the cache, 1 ran, 1 failed; 3.00 s",
    );
}
