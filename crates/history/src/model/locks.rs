//! Lock holders of the model: some are paused past their lease and write late.

use super::{Bug, Generated};
use crate::{
    Nanos,
    fencing::{Access, Grant, Token},
    random::Random,
};

const MS: Nanos = 1_000_000;

/// Adds the grants of one lock, and what its resource was asked.
pub(super) fn record(random: &mut Random, bug: Option<Bug>, generated: &mut Generated) {
    let lock = "lock".to_owned();
    let holders = 30;
    let wrong = random.between(5, holders - 5);
    let (mut counter, mut now, mut newest) = (1, 0, (0, 0));
    let mut paused: Vec<(u32, Token)> = Vec::new();
    for turn in 0..holders {
        let holder = turn as u32;
        counter += random.between(1, 9) as i64;
        let mut token = (1, counter);
        match bug {
            Some(Bug::TokenRegresses) if turn == wrong => token.1 = newest.1 - 1,
            Some(Bug::TokenRepeats) if turn == wrong => token = newest,
            _ => {}
        }
        generated.fired |= token <= newest;
        let call_ns = now + random.between(1, 50) * MS;
        let return_ns = call_ns + random.between(1, 5) * MS;
        now = return_ns;
        generated.recording.grants.push(Grant {
            lock: lock.clone(),
            holder,
            call_ns,
            return_ns,
            token,
        });
        let mut writes = vec![(holder, token); 3];
        // A holder that was paused before wakes up in the middle and goes on writing.
        if let Some(late) = paused.pop() {
            writes.insert(1, late);
        }
        if random.chance(300) {
            paused.push((holder, token));
        }
        let guarded = bug != Some(Bug::Unguarded);
        for (holder, token) in writes {
            let admitted = !guarded || token >= newest;
            generated.fired |= admitted && token < newest;
            if admitted {
                newest = newest.max(token);
            }
            generated.recording.accesses.push(Access {
                lock: lock.clone(),
                holder,
                token,
                admitted,
            });
        }
    }
}
