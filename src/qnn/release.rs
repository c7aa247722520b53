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
    /// Whether the graphs that it composes of DLCs run. Those of QNN 2.50 fail with error 1100 on
    /// the simulator, though the same graphs run without a DLC.
    pub composes_dlcs: bool,
}

/// The newest release.
const NEWEST: Release = Release {
    qnn: "2.51",
    wheel: "2.7.0",
    core_api: (2, 40),
    system_api: (1, 15),
    backend_slots: 75,
    system_slots: 90,
    beta_is_optional: true,
    composes_dlcs: true,
};

/// The releases, oldest first. All have the same tensors, operations, encodings, descriptions of
/// binaries, and options of graphs and contexts (compared by running them).
static RELEASES: [Release; 5] = [
    Release {
        qnn: "2.47",
        wheel: "2.3.0",
        core_api: (2, 36),
        system_api: (1, 11),
        backend_slots: 72,
        system_slots: 26,
        beta_is_optional: false,
        composes_dlcs: false,
    },
    Release {
        qnn: "2.48",
        wheel: "2.4.0",
        core_api: (2, 37),
        system_api: (1, 12),
        backend_slots: 72,
        system_slots: 27,
        beta_is_optional: false,
        composes_dlcs: false,
    },
    Release {
        qnn: "2.49",
        wheel: "2.5.0",
        core_api: (2, 38),
        system_api: (1, 13),
        backend_slots: 72,
        system_slots: 88,
        ..NEWEST
    },
    Release {
        qnn: "2.50",
        wheel: "2.6.0",
        core_api: (2, 39),
        system_api: (1, 14),
        system_slots: 89,
        composes_dlcs: false,
        ..NEWEST
    },
    NEWEST,
];

impl Release {
    /// All, oldest first.
    pub(super) fn all() -> &'static [Release] {
        &RELEASES
    }
}

/// The release of QNN in a wheel `onnxruntime-qnn`, by the version of the wheel. Devices need this
/// release or a later one to run what it compiles.
pub fn release_in_wheel(version: &str) -> Option<&'static str> {
    let release = RELEASES.iter().find(|release| release.wheel == version)?;
    Some(release.qnn)
}

/// How a user gets a release that kiln knows.
pub fn how_to_get() -> String {
    let [oldest, .., newest] = &RELEASES;
    format!(
        "pin `onnxruntime-qnn=={}` (QNN {}) in [tools]; versions from {} (QNN {}) work",
        newest.wheel, newest.qnn, oldest.wheel, oldest.qnn
    )
}
