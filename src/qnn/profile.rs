//! What the HTP's compiler expects of a graph on its chip: time, and traffic to and from DDR. It
//! reports this as the events of a profile that is passed to the finalization.
#![allow(unsafe_code)]

use std::ptr::null_mut;
use std::rc::Rc;

use super::context::Backend;
use super::library::{check, non_null, owned, slot};
use super::{Chip, Soc, ffi};
use crate::base::{Code, Problem, Result};

/// Limits on what a library reports: far above any real graph, low enough for memory.
const MAX_EVENTS: usize = 1 << 20;
const MAX_DEPTH: usize = 8;

/// `QNN_HTP_PROFILE_EVENTTYPE_GRAPH_FINALIZE_PERF_ESTIMATE_*`, from `QnnHtpProfile.h`.
const CYCLES: u32 = 2006;
const LOWER_CYCLES: u32 = 2007;
const UPPER_CYCLES: u32 = 2008;
const INPUT_FILL: u32 = 2011;
const FILL: u32 = 2012;
const SPILL: u32 = 2013;
const FILL_OF_OTHERS: u32 = 2014;
const SPILL_FOR_OTHERS: u32 = 2015;
const OUTPUT_SPILL: u32 = 2016;
const OPS_WITHOUT_COST: u32 = 2017;
const OP_WITHOUT_COST: u32 = 2018;
const TIME: u32 = 2019;
const LOWER_TIME: u32 = 2020;
const UPPER_TIME: u32 = 2021;

/// A figure of an estimate and its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded {
    /// The figure.
    pub value: u64,
    /// Its lower bound.
    pub lower: u64,
    /// Its upper bound.
    pub upper: u64,
}

/// The estimate of a graph. Bytes are those of one call, between DDR and the chip's own memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Duration of a call in microseconds.
    pub time_us: Bounded,
    /// The same in cycles of the HTP.
    pub cycles: Bounded,
    /// Reads of weights and inputs.
    pub read_bytes: u64,
    /// Reads of intermediate values.
    pub fill_bytes: u64,
    /// Writes of intermediate values.
    pub spill_bytes: u64,
    /// Writes of outputs.
    pub write_bytes: u64,
    /// Number of operations that count as free, because the compiler has no cost for them.
    pub ops_without_cost: u64,
    /// Their names, if the profile is detailed.
    pub names: Vec<String>,
}

/// An event of a profile.
#[derive(Clone, Debug)]
struct Event {
    kind: u32,
    value: u64,
    name: String,
}

impl Estimate {
    /// The estimate for `soc` among `events`. Others, such as the time of the compiler itself, are
    /// ignored.
    fn of(events: &[Event], soc: Soc) -> Result<Self> {
        if !events.iter().any(|event| event.kind == TIME) {
            let what = format!("the compiler has no estimate for {soc}");
            return Err(Problem::new(Code::QnnNoEstimate, what).help(format!(
                "it estimates for {}: take one of a similar architecture",
                Chip::estimated_names().join(", ")
            )));
        }
        let mut names = vec![];
        for event in events {
            if event.kind == OP_WITHOUT_COST {
                names.push(event.name.clone());
            }
        }
        let bounded = |value, lower, upper| -> Result<Bounded> {
            Ok(Bounded {
                value: single(events, value)?,
                lower: single(events, lower)?,
                upper: single(events, upper)?,
            })
        };
        Ok(Estimate {
            time_us: bounded(TIME, LOWER_TIME, UPPER_TIME)?,
            cycles: bounded(CYCLES, LOWER_CYCLES, UPPER_CYCLES)?,
            read_bytes: sum(events, &[INPUT_FILL])?,
            fill_bytes: sum(events, &[FILL, FILL_OF_OTHERS])?,
            spill_bytes: sum(events, &[SPILL, SPILL_FOR_OTHERS])?,
            write_bytes: sum(events, &[OUTPUT_SPILL])?,
            ops_without_cost: single(events, OPS_WITHOUT_COST)?,
            names,
        })
    }
}

/// The value of the only event of `kind`.
fn single(events: &[Event], kind: u32) -> Result<u64> {
    let mut values = vec![];
    for event in events {
        if event.kind == kind {
            values.push(event.value);
        }
    }
    match values[..] {
        [value] => Ok(value),
        _ => Err(odd(format!(
            "{} events {kind} in an estimate",
            values.len()
        ))),
    }
}

/// The sum of the events of `kinds`: there is one for each HTP of the chip. The first kind must be
/// there.
fn sum(events: &[Event], kinds: &[u32]) -> Result<u64> {
    let (mut sum, mut count) = (0u64, 0);
    for event in events {
        if kinds.contains(&event.kind) {
            sum = sum.saturating_add(event.value);
            count += u32::from(event.kind == kinds[0]);
        }
    }
    if count == 0 {
        return Err(odd(format!("no event {} in an estimate", kinds[0])));
    }
    Ok(sum)
}

fn odd(what: String) -> Problem {
    Problem::new(
        Code::QnnOddAnswer,
        format!("the QNN library reports {what}"),
    )
}

/// Collects the events of a finalization.
pub(super) struct Profile {
    backend: Rc<Backend>,
    pub(super) handle: ffi::Handle,
}

impl Profile {
    /// An empty profile. A detailed one also has the names of operations.
    pub(super) fn new(backend: &Rc<Backend>, is_detailed: bool) -> Result<Self> {
        let create = slot(backend.interface.table.profile_create, "profileCreate")?;
        let level = if is_detailed {
            ffi::PROFILE_DETAILED
        } else {
            ffi::PROFILE_BASIC
        };
        let mut profile = Profile {
            backend: Rc::clone(backend),
            handle: null_mut(),
        };
        // SAFETY: the backend is alive; the call writes a handle.
        let code = unsafe { create(backend.handle, level, &mut profile.handle) };
        check(code, || "make a profile".into())?;
        non_null(profile.handle, "profile")?;
        Ok(profile)
    }

    /// The estimate that a finalization left, for a graph of `soc`.
    pub(super) fn estimate(&self, soc: Soc) -> Result<Estimate> {
        Estimate::of(&self.events()?, soc)
    }

    /// All events, each before its sub-events.
    fn events(&self) -> Result<Vec<Event>> {
        let table = &self.backend.interface.table;
        let get_events = slot(table.profile_events, "profileGetEvents")?;
        let get_sub_events = slot(table.profile_sub_events, "profileGetSubEvents")?;
        let get_data = slot(table.profile_event_data, "profileGetEventData")?;
        let mut waiting = vec![];
        // SAFETY: the profile is alive; it owns the list.
        add_events(&mut waiting, 0, |list, count| unsafe {
            get_events(self.handle, list, count)
        })?;
        let mut events = vec![];
        while let Some((id, depth)) = waiting.pop() {
            let mut data = ffi::EventData {
                kind: 0,
                unit: 0,
                value: 0,
                name: std::ptr::null(),
            };
            // SAFETY: the event is one of a live profile; the call writes to `data` only.
            check(unsafe { get_data(id, &mut data) }, || {
                "read an event".into()
            })?;
            events.push(Event {
                kind: data.kind,
                value: data.value,
                // SAFETY: null, or a C string that the profile owns.
                name: unsafe { owned(data.name) },
            });
            // SAFETY: as for the list of all events.
            add_events(&mut waiting, depth + 1, |list, count| unsafe {
                get_sub_events(id, list, count)
            })?;
            if events.len() + waiting.len() > MAX_EVENTS {
                return Err(odd(format!("more than {MAX_EVENTS} events")));
            }
        }
        Ok(events)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if let (Some(free), false) = (
            self.backend.interface.table.profile_free,
            self.handle.is_null(),
        ) {
            // SAFETY: the handle came from its create function and is freed once, before its
            // backend.
            unsafe { free(self.handle) };
        }
    }
}

/// Adds the events of a list to `waiting`, so that the first is the next one.
fn add_events(
    waiting: &mut Vec<(ffi::EventId, usize)>,
    depth: usize,
    get: impl FnOnce(&mut *const ffi::EventId, &mut u32) -> ffi::Error,
) -> Result<()> {
    let (mut list, mut count) = (std::ptr::null(), 0);
    check(get(&mut list, &mut count), || "list events".into())?;
    let length = count as usize;
    if length == 0 {
        return Ok(());
    }
    if list.is_null() || length > MAX_EVENTS || depth > MAX_DEPTH {
        return Err(odd(format!("{length} events at depth {depth}")));
    }
    // SAFETY: the list is not null, and the library states its length.
    let ids = unsafe { std::slice::from_raw_parts(list, length) };
    for &id in ids.iter().rev() {
        waiting.push((id, depth));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soc() -> Soc {
        Chip::estimated("qcs9075").unwrap().into()
    }

    fn event(kind: u32, value: u64) -> Event {
        Event {
            kind,
            value,
            name: String::new(),
        }
    }

    /// The events of a chip with one HTP: each value is a hundredth of the kind's last digits.
    fn events() -> Vec<Event> {
        let kinds = [
            TIME,
            LOWER_TIME,
            UPPER_TIME,
            CYCLES,
            LOWER_CYCLES,
            UPPER_CYCLES,
            INPUT_FILL,
            FILL,
            SPILL,
            OUTPUT_SPILL,
            OPS_WITHOUT_COST,
        ];
        kinds.map(|kind| event(kind, kind.into())).into()
    }

    #[test]
    fn each_figure_is_read_from_its_event() {
        let estimate = Estimate::of(&events(), soc()).unwrap();
        let bounded = |value, lower, upper| Bounded {
            value,
            lower,
            upper,
        };
        let expected = Estimate {
            time_us: bounded(2019, 2020, 2021),
            cycles: bounded(2006, 2007, 2008),
            read_bytes: 2011,
            fill_bytes: 2012,
            spill_bytes: 2013,
            write_bytes: 2016,
            ops_without_cost: 2017,
            names: vec![],
        };
        assert_eq!(estimate, expected);
    }

    #[test]
    fn bytes_of_several_htps_are_added() {
        let mut two = events();
        two.extend([
            event(INPUT_FILL, 5),
            event(FILL_OF_OTHERS, 7),
            event(SPILL_FOR_OTHERS, u64::MAX),
        ]);
        let estimate = Estimate::of(&two, soc()).unwrap();
        assert_eq!(estimate.read_bytes, 2016);
        assert_eq!(estimate.fill_bytes, 2019);
        assert_eq!(estimate.spill_bytes, u64::MAX);
    }

    #[test]
    fn other_events_are_ignored_and_names_are_kept() {
        let mut more = vec![event(300, 1), event(2004, 0), event(9999, 1)];
        more.extend(events());
        for name in ["q::Add (1)", "q::Mul (2)"] {
            more.push(Event {
                name: name.into(),
                ..event(OP_WITHOUT_COST, 0)
            });
        }
        let estimate = Estimate::of(&more, soc()).unwrap();
        assert_eq!(estimate.names, ["q::Add (1)", "q::Mul (2)"]);
        assert_eq!(estimate.time_us.value, 2019);
    }

    #[test]
    fn a_chip_without_an_estimate_is_a_problem_with_the_chips_that_have_one() {
        let soc = Soc::named("sm8650").unwrap();
        let problem = Estimate::of(&[event(300, 1)], soc).unwrap_err();
        assert_eq!(problem.code, Code::QnnNoEstimate);
        assert_eq!(problem.message, "the compiler has no estimate for sm8650");
        assert!(problem.help.unwrap().contains("qcs9075, sa8797p"));
    }

    #[test]
    fn a_missing_or_repeated_event_is_a_problem() {
        let all = events();
        for index in 1..all.len() {
            let mut fewer = all.clone();
            let kind = fewer.remove(index).kind;
            let problem = Estimate::of(&fewer, soc()).unwrap_err();
            assert_eq!(problem.code, Code::QnnOddAnswer, "without {kind}");
            assert!(problem.message.contains(&kind.to_string()), "{problem}");
        }
        let mut twice = all;
        twice.push(event(TIME, 1));
        let problem = Estimate::of(&twice, soc()).unwrap_err();
        assert_eq!(problem.code, Code::QnnOddAnswer);
    }

    #[test]
    fn a_hostile_list_is_a_problem() {
        let ids = [7u64, 8];
        let mut waiting = vec![];
        let mut list = |depth, pointer: *const u64, length, code| {
            let result = add_events(&mut waiting, depth, |list, count| {
                (*list, *count) = (pointer, length);
                code
            });
            result.map_err(|problem| problem.code).err()
        };
        let null = std::ptr::null();
        assert_eq!(list(0, null, 0, 0), None);
        assert_eq!(list(0, null, 2, 0), Some(Code::QnnOddAnswer));
        assert_eq!(list(0, ids.as_ptr(), u32::MAX, 0), Some(Code::QnnOddAnswer));
        assert_eq!(list(9, ids.as_ptr(), 2, 0), Some(Code::QnnOddAnswer));
        assert_eq!(list(0, ids.as_ptr(), 2, 1000), Some(Code::QnnRefused));
        assert_eq!(list(1, ids.as_ptr(), 2, 0), None);
        assert_eq!(waiting, [(8, 1), (7, 1)]);
    }
}
