//! Values by descriptor: descriptors are small and dense, so they are places in a vector.

use std::os::fd::RawFd;

/// A value for each of some descriptors.
pub struct ByDescriptor<T> {
    values: Vec<Option<T>>,
}

impl<T> Default for ByDescriptor<T> {
    fn default() -> Self {
        Self { values: Vec::new() }
    }
}

impl<T> ByDescriptor<T> {
    /// Sets the value of a descriptor.
    pub fn set(&mut self, socket: RawFd, value: T) {
        let place = place(socket);
        if self.values.len() <= place {
            self.values.resize_with(place + 1, || None);
        }
        self.values[place] = Some(value);
    }

    /// The value of a descriptor.
    pub fn get(&self, socket: RawFd) -> Option<&T> {
        self.values.get(place(socket))?.as_ref()
    }

    /// The value of a descriptor, to be changed.
    pub fn get_mut(&mut self, socket: RawFd) -> Option<&mut T> {
        self.values.get_mut(place(socket))?.as_mut()
    }

    /// Removes the value of a descriptor.
    pub fn take(&mut self, socket: RawFd) -> Option<T> {
        self.values.get_mut(place(socket))?.take()
    }
}

fn place(socket: RawFd) -> usize {
    socket.unsigned_abs() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_used_again_begins_without_a_value() {
        let mut values = ByDescriptor::default();
        values.set(7, "one");
        assert_eq!((values.get(7), values.get(6), values.get(8)), (Some(&"one"), None, None));
        assert_eq!((values.take(7), values.take(7), values.take(700)), (Some("one"), None, None));
        assert_eq!(values.get_mut(7), None);
    }
}
