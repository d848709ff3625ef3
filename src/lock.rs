//! Locks of notes and tallies, which are whole at any moment: a panic of another thread while it
//! held one is no reason to fail here too.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, after a panic of another holder too.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
