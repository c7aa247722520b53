//! The releases of Qualcomm's libraries whose layouts `ffi` describes, and how they differ.

/// A release of QNN.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// Its version, which is that of QAIRT too.
    pub qnn: &'static str,
    /// The version of the wheel `onnxruntime-qnn` that contains it.
    pub wheel: &'static str,
    /// Version of the API of backends.
    pub core_api: (u32, u32),
    /// Version of the API of libQnnSystem.
    pub system_api: (u32, u32),
    /// Functions of a backend.
    pub backend_slots: usize,
    /// Functions of libQnnSystem.
    pub system_slots: usize,
    /// Whether RmsNorm may lack its third input, `beta`.
    pub beta_is_optional: bool,
}

/// The releases, oldest first. All have the same tensors, operations, encodings, options and
/// descriptions of binaries (compared by running them).
static RELEASES: [Release; 5] = [
    release("2.47", "2.3.0", (2, 36), (1, 11), 72, 26, false),
    release("2.48", "2.4.0", (2, 37), (1, 12), 72, 27, false),
    release("2.49", "2.5.0", (2, 38), (1, 13), 72, 88, true),
    release("2.50", "2.6.0", (2, 39), (1, 14), 75, 89, true),
    release("2.51", "2.7.0", (2, 40), (1, 15), 75, 90, true),
];

const fn release(
    qnn: &'static str,
    wheel: &'static str,
    core_api: (u32, u32),
    system_api: (u32, u32),
    backend_slots: usize,
    system_slots: usize,
    beta_is_optional: bool,
) -> Release {
    Release {
        qnn,
        wheel,
        core_api,
        system_api,
        backend_slots,
        system_slots,
        beta_is_optional,
    }
}

impl Release {
    /// All, oldest first.
    pub(super) fn all() -> &'static [Release] {
        &RELEASES
    }

    /// How a user gets the newest one.
    pub(super) fn how_to_get() -> String {
        let [oldest, .., newest] = &RELEASES;
        format!(
            "pin `onnxruntime-qnn=={}` (QNN {}) in [tools]; versions from {} (QNN {}) work",
            newest.wheel, newest.qnn, oldest.wheel, oldest.qnn
        )
    }
}
