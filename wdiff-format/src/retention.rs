//! Which snapshots a policy keeps, and what has to be done for that: pure planning, nothing here
//! knows of files.
//!
//! A policy is a list of rules such as `all 1h, every 1m 1d, every 1h 7d`: of the snapshots younger
//! than a rule's age and older than that of the rule before, the last one of each interval is kept
//! (without an interval: all). What is older than the last rule is applied to the base image.
//! Invariants: pinned snapshots and the latest are kept; whoever follows the plan and plans
//! again has nothing to do; intervals lie at fixed times, and one is thinned out only when all of
//! it is old enough, so a snapshot that is dropped is never the one that a coarser rule would keep.

use crate::gid::Gid;
use std::fmt;
use std::str::FromStr;

/// A snapshot, as far as a policy looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The snapshot.
    pub gid: Gid,
    /// Its time in Unix seconds.
    pub timestamp: u64,
    /// Taken on purpose: kept until it is given up.
    pub explicit: bool,
    /// No merge can cross it, for whatever reason.
    pub pinned: bool,
}

/// One rule of a policy; seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// One snapshot is kept in each interval of this length; 0: all are.
    pub every_s: u64,
    /// How old a snapshot may be for this rule.
    pub for_s: u64,
}

/// What is to be kept: rules from fine to coarse. Read from text: `all 1h, every 1m 1d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy(Vec<Rule>);

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: {1}; a policy is like: keep all 1h, every 1m 1d, every 1h 7d, every 1d 30d")]
pub struct BadPolicy(String, &'static str);

/// What has to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The base image goes to here.
    pub apply: Option<Gid>,
    /// One diff is made of all between two snapshots.
    pub merges: Vec<(Gid, Gid)>,
    /// The snapshots that are gone then.
    pub dropped: Vec<Gid>,
    /// An explicit snapshot older than the policy keeps the base image from going on.
    pub held_by: Option<Gid>,
}

impl Policy {
    /// Fails unless the rules get coarser and reach further.
    pub fn new(rules: Vec<Rule>) -> Result<Self, &'static str> {
        if rules.is_empty() {
            return Err("it has no rule");
        }
        let grows = rules.windows(2).all(|pair| match pair {
            [a, b] => {
                a.for_s < b.for_s
                    && a.every_s < b.every_s
                    && (a.every_s == 0 || b.every_s.is_multiple_of(a.every_s))
            }
            _ => true,
        });
        let rule =
            "each rule must reach further than the one before, and its interval be a multiple";
        if grows { Ok(Self(rules)) } else { Err(rule) }
    }

    /// The same policy with steps between rules whose intervals lie far apart: of an interval that
    /// still grows, what will surely not be its last snapshot goes early, in pieces. So few diffs
    /// are left however coarse the rules are, and no byte is merged more often than there are
    /// rules and steps, of which there are about as many as the logarithm of the interval.
    #[must_use]
    pub fn in_steps(&self) -> Self {
        let mut rules = Vec::with_capacity(self.0.len());
        for (at, rule) in self.0.iter().enumerate() {
            let finer = at.checked_sub(1).and_then(|before| self.0.get(before));
            rules.extend(finer.into_iter().flat_map(|finer| steps(*finer, *rule)));
            rules.push(*rule);
        }
        Self(rules)
    }

    /// How old a snapshot may be.
    fn span_s(&self) -> u64 {
        self.0.last().map_or(0, |rule| rule.for_s)
    }

    /// The interval that a snapshot is alone in at `now`: of the coarsest rule for which all of the
    /// interval is older than what the rule before covers. 0: it is kept.
    fn interval(&self, timestamp: u64, now: u64) -> u64 {
        let covers = |rules: &[Rule]| -> Option<u64> {
            let [finer, rule] = rules else { return None };
            let end = (timestamp / rule.every_s).saturating_add(1).saturating_mul(rule.every_s);
            (end.saturating_add(finer.for_s) <= now).then_some(rule.every_s)
        };
        let first = self.0.first().map_or(0, |rule| rule.every_s);
        self.0.windows(2).rev().find_map(covers).unwrap_or(first)
    }

    /// What has to be done so that of `points`, ascending, the first one being the base image's,
    /// only what the policy keeps at `now` is left.
    #[must_use]
    pub fn plan(&self, points: &[Point], now: u64) -> Plan {
        let mut plan = Plan::default();
        let horizon = now.saturating_sub(self.span_s());
        let mut first = points.iter().rposition(|p| p.timestamp <= horizon).unwrap_or(0);
        if let Some(held) = points.iter().take(first).position(|p| p.explicit) {
            plan.held_by = points.get(held).map(|p| p.gid);
            first = held;
        }
        if first > 0 {
            plan.apply = points.get(first).map(|p| p.gid);
        }
        plan.dropped.extend(points.iter().take(first).map(|p| p.gid));
        let rest = points.get(first..).unwrap_or_default();
        let keeps = |(at, point): (usize, &Point)| {
            let interval = self.interval(point.timestamp, now);
            let alone = rest.get(at + 1).is_none_or(|next| {
                interval == 0 || point.timestamp / interval != next.timestamp / interval
            });
            at == 0 || alone || point.explicit || point.pinned
        };
        let mut since: Option<(Gid, usize)> = None;
        for (at, point) in rest.iter().enumerate() {
            if !keeps((at, point)) {
                plan.dropped.push(point.gid);
                continue;
            }
            if let Some((gid, _)) = since.filter(|(_, before)| before + 1 < at) {
                plan.merges.push((gid, point.gid));
            }
            since = Some((point.gid, at));
        }
        plan
    }
}

impl FromStr for Policy {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = |why| BadPolicy(text.to_owned(), why);
        let list = text.trim().strip_prefix("keep ").unwrap_or(text);
        let rule = |part: &str| {
            let words: Vec<&str> = part.split_whitespace().collect();
            let seconds =
                |word| parse_seconds(word).ok_or_else(|| bad("a time is like 10s 5m 1h 7d"));
            match *words.as_slice() {
                ["all", age] => Ok(Rule { every_s: 0, for_s: seconds(age)? }),
                ["every", interval, age] | ["every", interval, "for", age] => {
                    Ok(Rule { every_s: seconds(interval)?, for_s: seconds(age)? })
                }
                _ => Err(bad("a rule is `all AGE` or `every INTERVAL AGE`")),
            }
        };
        let rules = list.split(',').map(rule).collect::<Result<_, _>>()?;
        Self::new(rules).map_err(bad)
    }
}

/// Seconds as people type them, in the largest unit that is exact: `90s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("d", 24 * 3600), ("h", 3600), ("m", 60)];
        let fits = |(_, length): &(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*length);
        let (unit, length) = units.into_iter().find(fits).unwrap_or(("s", 1));
        write!(f, "{}{unit}", self.0 / length)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keep ")?;
        for (at, rule) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            match rule.every_s {
                0 => write!(f, "{comma}all {}", Span(rule.for_s))?,
                every => write!(f, "{comma}every {} {}", Span(every), Span(rule.for_s))?,
            }
        }
        Ok(())
    }
}

/// Snapshots of an open interval that are left alone, and the intervals of one step in those of
/// the next.
const STEP: std::ops::RangeInclusive<u64> = 30..=120;

/// The rules that lead from `finer` to `coarser`, for snapshots that are older than `finer` covers.
fn steps(finer: Rule, coarser: Rule) -> Vec<Rule> {
    let (unit, mut every_s, mut found) = (finer.every_s.max(1), coarser.every_s, Vec::new());
    while every_s / unit > *STEP.end() {
        let fits = |k: &u64| every_s.is_multiple_of(k * unit);
        let Some(parts) = STEP.into_iter().find(fits) else { break };
        every_s /= parts;
        found.push(Rule { every_s, for_s: finer.for_s });
    }
    found.reverse();
    found
}

/// `90s`, `5m`, `1h`, `7d`, more than nothing.
fn parse_seconds(word: &str) -> Option<u64> {
    let (digits, unit) = word.split_at_checked(word.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(factor).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const NOW: u64 = 1_000_000_000;

    fn point(gid: u64, age_s: u64) -> Point {
        Point { gid: Gid(gid), timestamp: NOW - age_s, explicit: false, pinned: false }
    }

    fn policy(text: &str) -> Policy {
        text.parse().unwrap()
    }

    /// The points that are left when the plan was followed.
    fn follow(points: &[Point], plan: &Plan) -> Vec<Point> {
        let inside = |gid: Gid| plan.merges.iter().any(|(b, e)| *b < gid && gid < *e);
        let before = |gid: Gid| plan.apply.is_some_and(|to| gid < to);
        points.iter().copied().filter(|p| !inside(p.gid) && !before(p.gid)).collect()
    }

    #[test]
    fn texts_are_policies_or_say_why_not() {
        let text = "keep all 1h, every 1m 1d, every 1h for 7d, every 1d 30d";
        let policy = policy(text);
        assert_eq!(policy.0.len(), 4);
        assert_eq!(policy.0[2], Rule { every_s: 3600, for_s: 604_800 });
        assert_eq!(policy.to_string().parse(), Ok(policy));
        for (text, why) in [
            ("", "a rule is"),
            ("all", "a rule is"),
            ("all 1x", "a time is"),
            ("every 0s 1d", "a time is"),
            ("all 1d, every 1h 1d", "reach further"),
            ("every 1h 1d, all 7d", "reach further"),
            ("every 50m 1d, every 1h 7d", "a multiple"),
        ] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn old_intervals_are_thinned_out_and_older_snapshots_go() {
        // NOW is 2800 s behind a whole hour.
        let at = |gid, hours: u64, minutes: u64| point(gid, 2800 + hours * 3600 - minutes * 60);
        let points = [
            at(0, 60, 1),
            at(1, 50, 1),
            at(2, 49, 2),
            at(3, 10, 5),
            at(4, 10, 50),
            at(5, 9, 1),
            at(6, 9, 2),
            at(7, 9, 3),
            at(8, 2, 10),
            at(9, 0, 10),
            at(10, 0, 11),
        ];
        let mut plan = policy("all 2h, every 1h 2d").plan(&points, NOW);
        assert_eq!(plan.apply, Some(Gid(2)));
        let gids = |pairs: &[(u64, u64)]| -> Vec<(Gid, Gid)> {
            pairs.iter().map(|(b, e)| (Gid(*b), Gid(*e))).collect()
        };
        assert_eq!(plan.merges, gids(&[(2, 4), (4, 7)]));
        assert_eq!(plan.dropped, [0, 1, 3, 5, 6].map(Gid));
        let mut points = points;
        (points[1].explicit, points[6].pinned) = (true, true);
        plan = policy("all 2h, every 1h 2d").plan(&points, NOW);
        assert_eq!((plan.apply, plan.held_by), (Some(Gid(1)), Some(Gid(1))));
        assert_eq!(plan.merges, gids(&[(2, 4), (4, 6)]));
    }

    #[test]
    fn an_interval_is_thinned_out_only_when_all_of_it_is_old_enough() {
        // All of one hour, which ended 6400 s ago.
        let points = [point(0, 7900), point(1, 7800), point(2, 7500), point(3, 100)];
        let policy = policy("all 2h, every 1h 2d");
        assert_eq!(policy.plan(&points, NOW), Plan::default());
        assert_eq!(policy.plan(&points, NOW + 799), Plan::default());
        let plan = policy.plan(&points, NOW + 800);
        assert_eq!(plan.merges, [(Gid(0), Gid(2))]);
        assert_eq!(plan.dropped, [Gid(1)]);
    }

    #[test]
    fn steps_divide_what_lies_far_apart() {
        let steps = |text| policy(text).in_steps().0;
        let every = |rules: Vec<Rule>| rules.iter().map(|r| r.every_s).collect::<Vec<_>>();
        assert_eq!(every(steps("all 1h, every 1d 30d")), [0, 96, 2880, 86_400]);
        assert_eq!(every(steps("all 1h, every 1m 1d, every 1h 7d")), [0, 60, 3600]);
        assert_eq!(every(steps("every 1m 1d, every 1d 7d")), [60, 2880, 86_400]);
        assert_eq!(every(steps("every 7s 1d, every 49m 7d")), [7, 98, 2940]);
        assert!(steps("all 1h, every 1d 30d").iter().all(|r| [3600, 2_592_000].contains(&r.for_s)));
    }

    /// A volume that is written to all the time, over days, with a run every half an hour.
    #[test]
    fn a_busy_volume_keeps_few_diffs_and_merges_each_byte_a_few_times() {
        const DAYS: u64 = 2;
        const PAUSE_S: u64 = 1800;
        for (text, most, rewrites) in [
            ("all 1h, every 1m 1d, every 1h 7d, every 1d 30d", 3600 + 1440 + 120, 2),
            // Without steps, all of a day and an hour would be there: 90,000.
            ("all 1h, every 1d 30d", 3600 + 96 + 30 + 2, 3),
            ("all 1h", 3600, 0),
        ] {
            let policy = policy(text);
            // The snapshots, each with the bytes of the diff before it: one a second.
            let mut points: Vec<(Point, u64)> = Vec::new();
            let (mut merged, mut all, mut applied) = (0, 0, 0);
            for run in 1..=DAYS * 86_400 / PAUSE_S {
                let now = NOW + run * PAUSE_S;
                for second in now - PAUSE_S..now {
                    all += 1;
                    let point = Point { timestamp: second, ..point(second, 0) };
                    points.push((point, 1));
                }
                let seen: Vec<Point> = points.iter().map(|(p, _)| *p).collect();
                let plan = policy.in_steps().plan(&seen, now);
                for (begin, end) in &plan.merges {
                    let inputs = points.iter_mut().filter(|(p, _)| *begin < p.gid && p.gid <= *end);
                    let bytes: u64 = inputs.map(|(_, bytes)| std::mem::take(bytes)).sum();
                    merged += bytes;
                    points.iter_mut().filter(|(p, _)| p.gid == *end).for_each(|(_, b)| *b = bytes);
                    points.retain(|(p, _)| p.gid <= *begin || p.gid >= *end);
                }
                if let Some(to) = plan.apply {
                    applied +=
                        points.iter().filter(|(p, _)| p.gid <= to).map(|(_, b)| b).sum::<u64>();
                    points.retain(|(p, _)| p.gid >= to);
                    points.iter_mut().filter(|(p, _)| p.gid == to).for_each(|(_, b)| *b = 0);
                }
                let most = most + usize::try_from(PAUSE_S).unwrap();
                assert!(points.len() <= most, "{text}: {} diffs after run {run}", points.len());
            }
            assert!(merged <= all * rewrites, "{text}: {merged} bytes of {all} were written again");
            assert_eq!(points.iter().map(|(_, bytes)| bytes).sum::<u64>() + applied, all);
        }
    }

    prop_compose! {
        fn histories()(
            steps in prop::collection::vec((1_u64..4000, 0_u8..12), 1..120),
        ) -> Vec<Point> {
            let mut age: u64 = steps.iter().map(|(gap, _)| gap).sum();
            let point = |(at, (gap, kind)): (usize, (u64, u8))| {
                age -= gap;
                let (explicit, pinned) = (kind == 0, kind == 1);
                Point { explicit, pinned, ..point(at as u64 * 3, age) }
            };
            steps.into_iter().enumerate().map(point).collect()
        }
    }

    proptest! {
        #[test]
        fn plans_keep_what_they_must_and_are_final(
            points in histories(),
            text in prop::sample::select(vec![
                "all 1h, every 1m 2h, every 10m 1d", "every 5m 3h", "all 10m", "all 40d",
                "every 1m 10m, every 1h 12h, every 1d 3d", "all 10m, every 1d 3d",
            ]),
            stepwise in prop::bool::ANY,
        ) {
            let policy = policy(text);
            let rules = policy.0.clone();
            let policy = if stepwise { policy.in_steps() } else { policy };
            let plan = policy.plan(&points, NOW);
            let left = follow(&points, &plan);
            let gids: BTreeSet<Gid> = left.iter().map(|p| p.gid).collect();
            let dropped: BTreeSet<Gid> = plan.dropped.iter().copied().collect();
            for p in &points {
                prop_assert_ne!(gids.contains(&p.gid), dropped.contains(&p.gid));
                prop_assert!(gids.contains(&p.gid) || !p.explicit);
            }
            prop_assert_eq!(left.last(), points.last());
            // No merge crosses what it cannot, and each has something to do.
            for (begin, end) in &plan.merges {
                let inside = points.iter().filter(|p| *begin < p.gid && p.gid < *end);
                let inside: Vec<_> = inside.collect();
                prop_assert!(!inside.is_empty());
                prop_assert!(inside.iter().all(|p| !p.explicit && !p.pinned));
                prop_assert!(gids.contains(begin) && gids.contains(end));
            }
            // For each snapshot that is young enough there is one left in its interval, not older.
            for p in points.iter().filter(|p| NOW - p.timestamp < policy.span_s()) {
                let rule = rules.iter().find(|r| NOW - p.timestamp <= r.for_s).unwrap();
                let near = |k: &Point| match rule.every_s {
                    0 => k.gid == p.gid,
                    every => k.timestamp >= p.timestamp
                        && k.timestamp / every == p.timestamp / every,
                };
                prop_assert!(left.iter().any(near), "{:?} by {:?}", p, rule);
            }
            // Followed, there is nothing more to do; and later it comes to what it would have, but
            // for the snapshot of the base image: what could be it may have been merged.
            let again = policy.plan(&left, NOW);
            prop_assert_eq!((&again.apply, &again.merges), (&None, &vec![]));
            let later = NOW + 5000;
            let then = |points: &[Point]| -> Vec<Point> {
                let left = follow(points, &policy.plan(points, later));
                left.into_iter().filter(|p| later - p.timestamp < policy.span_s()).collect()
            };
            prop_assert_eq!(then(&left), then(&points));
        }
    }
}
