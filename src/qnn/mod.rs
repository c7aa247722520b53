//! Floor 1: the device. The QNN C API behind safe faces; the only room with raw pointers.
