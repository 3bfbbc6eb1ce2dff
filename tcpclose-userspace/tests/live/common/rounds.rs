//! What to make of an agent that told something wrong of which the kernel had not told it all.
//!
//! A kernel that leaves a program out (`left_out`) spoils one connection for each time it does, and no agent can help
//! that. It must not make a test fail, nor may it hide what we forget. So what an agent told wrong is played again, on
//! new sockets and beside new agents, if the kernel has proven that it left that agent out, and no fewer times than the
//! agent got things wrong; else the test has failed. It passes only when each thing has been told right by every agent
//! in one round: nothing is let off, it is only asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{self, Write as _};

/// A kernel that spoils the same thing so often leaves more out than it should, and so may we.
const ROUNDS: usize = 4;

/// See [`untold`].
const UNTOLD: usize = 2;

/// Something that an agent told wrong.
#[derive(Debug)]
pub struct Wrong<P> {
    /// Which agent, by the place that it has in the round.
    pub agent: usize,
    /// Of what.
    pub play: P,
    pub what: String,
}

/// What came of one round.
#[derive(Debug)]
pub struct Round<P> {
    pub wrong: Vec<Wrong<P>>,
    /// What is wrong whatever the kernel did.
    pub hopeless: Vec<String>,
    /// What is wrong with totals of everything on the machine, and what the kernel left out may have done that: one event
    /// that never came, and an agent calls every end lost whose entry it has not seen, of another's old sockets too.
    /// Then all is played again.
    pub unclear: Vec<String>,
    /// What was over before every agent could be asked, on a machine that does too much else: it is not judged.
    pub late: Vec<P>,
    /// How many events each agent was not told of, by the kernel's own counts.
    pub left_out: Vec<u64>,
}

impl<P: Copy + Ord + Debug> Round<P> {
    /// What is to be played again.
    ///
    /// # Errors
    /// What is wrong, and nobody's fault but ours.
    fn again(&self, plays: &[P]) -> Result<Vec<P>, Vec<String>> {
        let mut ours = self.hopeless.clone();
        let mut spoiled: BTreeMap<usize, BTreeSet<P>> = BTreeMap::new();
        for wrong in &self.wrong {
            spoiled.entry(wrong.agent).or_default().insert(wrong.play);
        }
        let excused = |agent: usize| spoiled[&agent].len() as u64 <= self.left_out[agent];
        ours.extend(self.wrong.iter().filter(|wrong| !excused(wrong.agent)).map(|wrong| wrong.what.clone()));
        if !ours.is_empty() {
            return Err(ours);
        }
        if !self.unclear.is_empty() {
            return Ok(plays.to_vec());
        }
        let again: BTreeSet<P> = spoiled.into_values().flatten().chain(self.late.iter().copied()).collect();
        Ok(again.into_iter().collect())
    }
}

/// The plays of which the kernel told nobody, and did not count it: every agent that `sees` one, at each backend, told it
/// wrong, and each says itself, by what its dumps had to `mend`, that so many records never came. That is seen on virtual
/// machines where a softirq runs on a thread of PID 1: ftrace then has the event, and no BPF program of any kind runs. It
/// is rare: more than [`UNTOLD`] in one round are ours.
pub fn untold<P: Copy + Ord>(
    wrong: &[Wrong<P>],
    corrected: &[f64],
    sees: impl Fn(usize, P) -> bool,
) -> BTreeSet<P> {
    let reported_wrong: BTreeSet<(usize, P)> = wrong.iter().map(|wrong| (wrong.agent, wrong.play)).collect();
    let plays: BTreeSet<P> = wrong.iter().map(|wrong| wrong.play).collect();
    let agents = 0..corrected.len();
    let by_all =
        |&play: &P| agents.clone().all(|agent| !sees(agent, play) || reported_wrong.contains(&(agent, play)));
    let untold: BTreeSet<P> = plays.into_iter().filter(by_all).collect();
    let seen = |agent| untold.iter().filter(|&&play| sees(agent, play)).count();
    let printed = agents.clone().all(|agent| seen(agent) as f64 <= corrected[agent]);
    if printed && untold.len() <= UNTOLD { untold } else { BTreeSet::new() }
}

/// As [`untold`], of connections that are no play's: how many steps all agents have lost, by their own counts.
pub fn untold_of_others(lost: impl Iterator<Item = f64>) -> u64 {
    let by_all = lost.fold(f64::INFINITY, f64::min).max(0.0) as u64;
    if by_all <= UNTOLD as u64 { by_all } else { 0 }
}

/// Plays `plays`, and again those that were told wrong for want of what the kernel left out, until none is; fails when
/// something is wrong for another reason, or stays.
pub fn until_reported<P: Copy + Ord + Debug>(mut plays: Vec<P>, mut round: impl FnMut(&[P]) -> Round<P>) {
    for _ in 0..ROUNDS {
        let round = round(&plays);
        match round.again(&plays) {
            Ok(again) if again.is_empty() => return,
            Ok(again) => plays = again,
            Err(wrong) => panic!("{} are wrong:\n{}", wrong.len(), wrong.join("\n")),
        }
        for wrong in &round.wrong {
            say(&format!(
                "THE KERNEL LEFT THE PROBE OUT {} times: {}",
                round.left_out[wrong.agent], wrong.what
            ));
        }
        for what in &round.unclear {
            say(&format!("THE KERNEL LEFT THE PROBE OUT, perhaps therefore: {what}"));
        }
        say(&format!("PLAYED AGAIN: {plays:?}, of which these were over too soon: {:?}", round.late));
    }
    panic!(
        "after {ROUNDS} rounds the kernel has left the probe out each time, or this machine is too slow: {plays:?}"
    );
}

/// Whoever reads the log of a test that passed is to know what it took: not by eprintln!, which a test harness keeps back.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "{what}");
}

#[test]
fn only_what_the_kernel_left_out_is_asked_again() {
    let wrong = |agent, play: &'static str| Wrong { agent, play, what: format!("{play} at {agent}") };
    let round = |wrong, left_out: &[u64]| Round {
        wrong,
        hopeless: Vec::new(),
        unclear: Vec::new(),
        late: Vec::new(),
        left_out: left_out.to_vec(),
    };
    assert_eq!(round(vec![], &[5, 0]).again(&["a", "b"]).unwrap(), Vec::<&str>::new());
    // Two lines on one play are of one connection.
    let twice = vec![wrong(0, "a"), wrong(0, "a"), wrong(1, "b")];
    assert_eq!(round(twice, &[1, 1]).again(&["a", "b"]).unwrap(), ["a", "b"]);
    // Nothing was left out for agent 1.
    let ours = round(vec![wrong(0, "a"), wrong(1, "b")], &[1, 0]).again(&["a", "b"]);
    assert_eq!(ours.unwrap_err(), ["b at 1"]);
    // Less was left out than is wrong.
    let ours = round(vec![wrong(0, "a"), wrong(0, "b")], &[1]).again(&["a", "b"]);
    assert_eq!(ours.unwrap_err(), ["a at 0", "b at 0"]);
    let late = Round { late: vec!["b"], ..round(vec![wrong(0, "c")], &[1]) };
    assert_eq!(late.again(&["a", "b", "c"]).unwrap(), ["b", "c"]);
    let hopeless = Round::<&str> { hopeless: vec!["lost".to_owned()], ..round(vec![], &[9]) };
    assert_eq!(hopeless.again(&["a"]).unwrap_err(), ["lost"]);
    let unclear = || vec!["totals".to_owned()];
    let all = Round { unclear: unclear(), ..round(vec![wrong(0, "a")], &[1]) };
    assert_eq!(all.again(&["a", "b"]).unwrap(), ["a", "b"]);
    let ours = Round { unclear: unclear(), ..round(vec![wrong(0, "a")], &[0]) };
    assert_eq!(ours.again(&["a", "b"]).unwrap_err(), ["a at 0"]);
}

#[test]
fn what_was_sent_to_nobody_is_what_all_had_to_mend() {
    let wrong = |agent, play: &'static str| Wrong { agent, play, what: String::new() };
    let all = |_, _| true;
    let both = [wrong(0, "a"), wrong(1, "a"), wrong(1, "b")];
    assert_eq!(untold(&both, &[1.0, 2.0], all), BTreeSet::from(["a"]));
    // One of them had nothing to mend.
    assert_eq!(untold(&both, &[1.0, 0.0], all), BTreeSet::new());
    // Who does not see a play says nothing of it.
    assert_eq!(
        untold(&both, &[1.0, 2.0], |agent, play| agent == 1 || play == "a"),
        BTreeSet::from(["a", "b"])
    );
    let many = ["a", "b", "c"].map(|play| wrong(0, play));
    assert_eq!(untold(&many, &[9.0], all), BTreeSet::new());
}

#[test]
fn what_all_agents_have_lost_of_others_was_told_to_none() {
    assert_eq!(untold_of_others([1.0, 2.0].into_iter()), 1);
    assert_eq!(untold_of_others([1.0, 0.0].into_iter()), 0);
    // The kernel had counted it.
    assert_eq!(untold_of_others([1.0, -1.0].into_iter()), 0);
    assert_eq!(untold_of_others([3.0, 3.0].into_iter()), 0);
}
