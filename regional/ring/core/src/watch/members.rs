//! The list of watchers that share one key or one range.
//!
//! Most keys have one watcher and some have ten thousand, so one watcher costs no allocation, and
//! removing one of many takes constant time: every watcher knows its position in the list.

/// A watcher's index in the hub's slab.
pub(super) type Slot = u32;

/// A list of watchers in no particular order.
#[derive(Debug)]
pub(super) enum Members {
    /// The only one.
    One(Slot),
    /// Any number.
    Many(Vec<Slot>),
}

impl Members {
    /// Adds a watcher and returns its position.
    pub(super) fn push(&mut self, slot: Slot) -> u32 {
        if let Self::One(first) = *self {
            *self = Self::Many(vec![first]);
        }
        let Self::Many(slots) = self else { unreachable!("made so above") };
        slots.push(slot);
        place(slots.len() - 1)
    }

    /// Removes the watcher at `position` and returns the watcher that moved there, if one did.
    pub(super) fn remove(&mut self, position: u32) -> Option<Slot> {
        match self {
            Self::One(_) => {
                *self = Self::Many(Vec::new());
                None
            }
            Self::Many(slots) => {
                slots.swap_remove(position as usize);
                if slots.len() * 4 < slots.capacity() {
                    slots.shrink_to(slots.len() * 2);
                }
                slots.get(position as usize).copied()
            }
        }
    }

    /// All watchers of the list.
    pub(super) fn slots(&self) -> &[Slot] {
        match self {
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }
}

fn place(index: usize) -> u32 {
    u32::try_from(index).expect("limits::WATCHERS_MAX fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_returns_the_watcher_that_moved() {
        let mut members = Members::One(7);
        assert_eq!(members.push(8), 1);
        assert_eq!(members.push(9), 2);
        assert_eq!(members.remove(0), Some(9));
        assert_eq!(members.slots(), [9, 8]);
        assert_eq!(members.remove(1), None);
        assert_eq!(members.remove(0), None);
        assert!(members.slots().is_empty());
    }
}
