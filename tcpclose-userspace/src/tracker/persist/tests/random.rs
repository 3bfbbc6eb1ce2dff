//! Chance histories: what is taken up holds, whatever they were.

use crate::tracker::persist::tests::*;

/// What a socket went through: each state and when it was entered.
type History = Vec<(u64, TcpState)>;

fn history(dice: &mut Dice) -> History {
    let ways: [&[TcpState]; 3] = [&[CloseWait, LastAck, Close], &[FinWait1, FinWait2], &[FinWait1, Closing]];
    let way = ways[dice.below(3) as usize];
    let mut at = T0 + dice.below(20 * S);
    let mut history = History::new();
    for &state in way {
        history.push((at, state));
        let long = dice.below(2) == 0;
        at += 1 + dice.below(if long { 20 * S } else { 300 * MS });
    }
    history
}

fn state_at(history: &History, at: u64) -> Option<(u64, TcpState)> {
    history.iter().rev().find(|(since, _)| *since <= at).copied().filter(|(_, state)| *state != Close)
}

/// Whatever went on, whenever the first agent was killed, wherever its last write was torn: what the second one says of
/// an entry holds; and what stayed as it was at the last save is exact.
#[test]
fn whatever_happened_what_is_taken_up_holds() {
    for round in 0..200 {
        let mut dice = Dice(round);
        let by_cookie = round % 2 == 0;
        let histories: Vec<History> = (0..60).map(|_| history(&mut dice)).collect();
        let mut events: Vec<(u64, usize, (TcpState, TcpState))> = Vec::new();
        for (n, history) in histories.iter().enumerate() {
            let mut old = Established;
            for &(at, new) in history {
                events.push((at, n, (old, new)));
                old = new;
            }
        }
        events.sort_by_key(|(at, ..)| *at);

        let (mut a, mut journal, mut file) = keeping(by_cookie);
        let killed = T0 + dice.below(40 * S);
        let mut events = events.into_iter().peekable();
        let mut complete = Vec::new();
        for save in (0..).map(|n| T0 + n * 500 * MS).take_while(|at| *at < killed) {
            while let Some((at, n, what)) = events.next_if(|(at, ..)| *at <= save) {
                step(&mut a, sock(n as u64), at, what);
            }
            file.save(&mut journal, &mut a, save);
            complete.push((file.0.len(), save));
        }
        // The last write may be torn.
        let torn = dice.below(100) as usize;
        let first = complete.first().map_or(0, |(length, _)| *length);
        let length = file.0.len().saturating_sub(torn).max(first);
        file.0.truncate(length);
        let Some(&(_, saved)) = complete.iter().rev().find(|(end, _)| *end <= length) else { continue };

        let now = killed + dice.below(30 * S);
        let mut seen_now = Vec::new();
        let mut truth = BTreeMap::new();
        for (n, history) in histories.iter().enumerate() {
            let Some((entered, state)) = state_at(history, now) else { continue };
            let age = now - entered;
            let max = (dice.below(4) != 0).then(|| age + dice.below(10 * S));
            let proven = Age { min_ns: age - dice.below(age + 1), max_ns: max };
            let mut seen = seen(sock(n as u64), state, now, proven);
            if state == FinWait2 && dice.below(2) == 0 {
                seen = DumpedSocket { kind: SocketKind::Minisocket, expires_ns: S, ..seen };
            }
            seen_now.push(seen);
            truth.insert(sock(n as u64).cookie, (entered, state_at(history, saved), seen));
        }
        let mut b = tracker(by_cookie);
        let reported = first_dump(&mut b, file.read(now), now, &seen_now);
        assert_eq!(reported, []);
        assert_eq!(b.len(), truth.len());
        for socket in b.sockets() {
            let (entered, then, seen) = &truth[&socket.cookie];
            let holds = (socket.since.earliest_ns..=socket.since.latest_ns).contains(entered);
            assert!(holds, "round {round}: {socket:?} entered at {entered}");
            let stayed = *then == Some((*entered, seen.state));
            let known = by_cookie || (seen.kind == SocketKind::Socket && seen.age.max_ns.is_some());
            if stayed && known {
                assert_eq!(socket.since, EnteredAt::exact(*entered), "round {round}: {socket:?}");
            }
        }
    }
}
