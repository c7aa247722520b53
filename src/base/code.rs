//! The codes of problems in one table. Each has a stable text and a class. A new code is one line.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The class of a code, which determines the exit code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The plan, the command line or a log is invalid.
    Plan,
    /// A stage failed.
    Stage,
    /// Bytes have another digest than expected.
    Digest,
    /// A tool, or a file of a tool, is missing.
    Tool,
    /// The cache or an output folder cannot be used.
    Store,
    /// Interrupted by Ctrl-C or SIGTERM.
    Interrupted,
}

/// Defines [`Code`] from a list of classes with their variants and texts.
macro_rules! codes {
    ($($class:ident { $($variant:ident = $text:literal,)* })*) => {
        /// The code of a problem, for programs. Its text is stable: `kiln::plan::unknown_key`.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $text] $variant,)*)*
            /// A code that this kiln does not have, for example from a log of a newer one.
            Other(OtherCode),
        }

        impl Code {
            /// All codes of this kiln.
            pub const ALL: &[Code] = &[$($(Code::$variant,)*)*];

            /// The code with this text. An unknown text is kept in [`Code::Other`].
            pub fn of(text: &str) -> Code {
                match text {
                    $($($text => Code::$variant,)*)*
                    other => Code::Other(OtherCode(other.into())),
                }
            }

            /// Its stable text.
            pub fn as_str(&self) -> &str {
                match self {
                    $($(Code::$variant => $text,)*)*
                    Code::Other(OtherCode(text)) => text,
                }
            }

            /// Its class.
            pub fn class(&self) -> Class {
                match self {
                    $($(Code::$variant)|* => Class::$class,)*
                    Code::Other(_) => Class::Stage,
                }
            }
        }
    };
}

/// The text of a code that is not in the table; only [`Code::of`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OtherCode(Box<str>);

codes! {
    Plan {
        CallExists = "kiln::call::exists",
        CallFormat = "kiln::call::format",
        CallJson = "kiln::call::json",
        CallLock = "kiln::call::lock",
        CallLockOfPart = "kiln::call::lock_of_part",
        CallLog = "kiln::call::log",
        CallNoCache = "kiln::call::no_cache",
        CallNoLock = "kiln::call::no_lock",
        CallNotBuilt = "kiln::call::not_built",
        CallPlace = "kiln::call::place",
        CallProgram = "kiln::call::program",
        CallReport = "kiln::call::report",
        CallSignal = "kiln::call::signal",
        CallSourceDateEpoch = "kiln::call::source_date_epoch",
        CallUnknownPart = "kiln::call::unknown_part",
        CallUnknownStage = "kiln::call::unknown_stage",
        CallUnreadable = "kiln::call::unreadable",
        CallUrl = "kiln::call::url",
        CallWrite = "kiln::call::write",
        FetchUnpinned = "kiln::fetch::unpinned",
        LogCut = "kiln::log::cut",
        LogLine = "kiln::log::line",
        LogSchema = "kiln::log::schema",
        LogTooLong = "kiln::log::too_long",
        LogUnreadable = "kiln::log::unreadable",
        PlanAxis = "kiln::plan::axis",
        PlanBadName = "kiln::plan::bad_name",
        PlanCycle = "kiln::plan::cycle",
        PlanDefinedTwice = "kiln::plan::defined_twice",
        PlanInclude = "kiln::plan::include",
        PlanMatrix = "kiln::plan::matrix",
        PlanMissingInput = "kiln::plan::missing_input",
        PlanMissingKind = "kiln::plan::missing_kind",
        PlanMissingName = "kiln::plan::missing_name",
        PlanMissingParameter = "kiln::plan::missing_parameter",
        PlanMissingTool = "kiln::plan::missing_tool",
        PlanMore = "kiln::plan::more",
        PlanParameter = "kiln::plan::parameter",
        PlanPattern = "kiln::plan::pattern",
        PlanSoc = "kiln::plan::soc",
        PlanSyntax = "kiln::plan::syntax",
        PlanTooLarge = "kiln::plan::too_large",
        PlanToolSource = "kiln::plan::tool_source",
        PlanUnknownKey = "kiln::plan::unknown_key",
        PlanUnknownKind = "kiln::plan::unknown_kind",
        PlanUnknownParameter = "kiln::plan::unknown_parameter",
        PlanUnknownStage = "kiln::plan::unknown_stage",
        PlanUnknownVariable = "kiln::plan::unknown_variable",
        PlanUnreadable = "kiln::plan::unreadable",
        PlanUnusedVariable = "kiln::plan::unused_variable",
        PlanUrl = "kiln::plan::url",
        PlanVariable = "kiln::plan::variable",
        PlanWrongArtifact = "kiln::plan::wrong_artifact",
        PlanWrongType = "kiln::plan::wrong_type",
    }
    Stage {
        CalibrateKeys = "kiln::calibrate::keys",
        CalibrateNonFinite = "kiln::calibrate::non_finite",
        CalibrateWeight = "kiln::calibrate::weight",
        CommandFailed = "kiln::command::failed",
        CommandOutput = "kiln::command::output",
        CommandProgram = "kiln::command::program",
        CommandStart = "kiln::command::start",
        DeviceDlc = "kiln::device::dlc",
        DeviceReadBack = "kiln::device::read_back",
        DeviceWeights = "kiln::device::weights",
        Digest = "kiln::digest",
        DlcEncoding = "kiln::dlc::encoding",
        DlcNoContainer = "kiln::dlc::no_container",
        DlcPlace = "kiln::dlc::place",
        EngineCompleted = "kiln::engine::completed",
        EngineLookUp = "kiln::engine::look_up",
        EngineMemory = "kiln::engine::memory",
        EnginePanicked = "kiln::engine::panicked",
        EngineProof = "kiln::engine::proof",
        EngineSameOrder = "kiln::engine::same_order",
        EngineSamePart = "kiln::engine::same_part",
        EngineTimeout = "kiln::engine::timeout",
        EngineUnknownKind = "kiln::engine::unknown_kind",
        EvaluateGraph = "kiln::evaluate::graph",
        EvaluateGraphTooSmall = "kiln::evaluate::graph_too_small",
        EvaluateGraphs = "kiln::evaluate::graphs",
        EvaluateMask = "kiln::evaluate::mask",
        EvaluateOutput = "kiln::evaluate::output",
        EvaluateReference = "kiln::evaluate::reference",
        EvaluateRun = "kiln::evaluate::run",
        EvaluateRuntime = "kiln::evaluate::runtime",
        EvaluateToken = "kiln::evaluate::token",
        EvaluateType = "kiln::evaluate::type",
        EvaluateVocabulary = "kiln::evaluate::vocabulary",
        EvaluateWindows = "kiln::evaluate::windows",
        EvaluateLayersGraphs = "kiln::evaluate_layers::graphs",
        EvaluateLayersOther = "kiln::evaluate_layers::other",
        EvaluateLayersTokens = "kiln::evaluate_layers::tokens",
        EvaluateLayersValue = "kiln::evaluate_layers::value",
        ExecuteCrashed = "kiln::execute::crashed",
        ExecuteIo = "kiln::execute::io",
        ExecuteOrphans = "kiln::execute::orphans",
        ExecuteOutputMissing = "kiln::execute::output_missing",
        ExecuteParent = "kiln::execute::parent",
        ExecuteSpawn = "kiln::execute::spawn",
        ExecuteStageVersion = "kiln::execute::stage_version",
        ExecuteUnknownStage = "kiln::execute::unknown_stage",
        Facts = "kiln::facts",
        FetchAnswer = "kiln::fetch::answer",
        FetchConnect = "kiln::fetch::connect",
        FetchFile = "kiln::fetch::file",
        FetchForbidden = "kiln::fetch::forbidden",
        FetchMember = "kiln::fetch::member",
        FetchNotFound = "kiln::fetch::not_found",
        FetchOtherFile = "kiln::fetch::other_file",
        FetchPip = "kiln::fetch::pip",
        FetchProxy = "kiln::fetch::proxy",
        FetchRange = "kiln::fetch::range",
        FetchRead = "kiln::fetch::read",
        FetchRedirect = "kiln::fetch::redirect",
        FetchRequest = "kiln::fetch::request",
        FetchStatus = "kiln::fetch::status",
        FetchTls = "kiln::fetch::tls",
        FetchTooLarge = "kiln::fetch::too_large",
        FetchTruncated = "kiln::fetch::truncated",
        FetchWheel = "kiln::fetch::wheel",
        GenerateConfig = "kiln::generate::config",
        GenerateFirstToken = "kiln::generate::first_token",
        GenerateNoPrompt = "kiln::generate::no_prompt",
        GenerateReference = "kiln::generate::reference",
        GenerateSharedWeights = "kiln::generate::shared_weights",
        GenerateTokenizer = "kiln::generate::tokenizer",
        GenerateTokens = "kiln::generate::tokens",
        GenieRefused = "kiln::genie::refused",
        GraphCalibration = "kiln::graph::calibration",
        GraphInput = "kiln::graph::input",
        GraphKeyCentre = "kiln::graph::key_centre",
        GraphShards = "kiln::graph::shards",
        GraphWeights = "kiln::graph::weights",
        InputChanged = "kiln::input::changed",
        InputIo = "kiln::input::io",
        InputTooMany = "kiln::input::too_many",
        InputMissing = "kiln::input_missing",
        InspectChild = "kiln::inspect::child",
        InspectCrashed = "kiln::inspect::crashed",
        InspectJson = "kiln::inspect::json",
        Io = "kiln::io",
        LowerAttribute = "kiln::lower::attribute",
        LowerConstant = "kiln::lower::constant",
        LowerEncoding = "kiln::lower::encoding",
        LowerExternal = "kiln::lower::external",
        LowerFunction = "kiln::lower::function",
        LowerHalf = "kiln::lower::half",
        LowerInput = "kiln::lower::input",
        LowerOp = "kiln::lower::op",
        LowerOutput = "kiln::lower::output",
        LowerScale = "kiln::lower::scale",
        LowerShape = "kiln::lower::shape",
        LowerType = "kiln::lower::type",
        LowerWeight = "kiln::lower::weight",
        MeasureBundle = "kiln::measure::bundle",
        MeasureDevice = "kiln::measure::device",
        MixedPrecisionBudget = "kiln::mixed_precision::budget",
        MixedPrecisionEstimate = "kiln::mixed_precision::estimate",
        ModelArchitecture = "kiln::model::architecture",
        ModelFacts = "kiln::model::facts",
        ModelGgmlType = "kiln::model::ggml_type",
        ModelGgufAlignment = "kiln::model::gguf_alignment",
        ModelGgufBigEndian = "kiln::model::gguf_big_endian",
        ModelGgufCount = "kiln::model::gguf_count",
        ModelGgufKey = "kiln::model::gguf_key",
        ModelGgufMagic = "kiln::model::gguf_magic",
        ModelGgufSplit = "kiln::model::gguf_split",
        ModelGgufString = "kiln::model::gguf_string",
        ModelGgufTensor = "kiln::model::gguf_tensor",
        ModelGgufTruncated = "kiln::model::gguf_truncated",
        ModelGgufValue = "kiln::model::gguf_value",
        ModelGgufVersion = "kiln::model::gguf_version",
        ModelHyperparameters = "kiln::model::hyperparameters",
        ModelLayer = "kiln::model::layer",
        ModelNotSupported = "kiln::model::not_supported",
        ModelTensor = "kiln::model::tensor",
        ModelTensors = "kiln::model::tensors",
        ModelVocabulary = "kiln::model::vocabulary",
        ModelWeight = "kiln::model::weight",
        OnnxEncoding = "kiln::onnx::encoding",
        OnnxEncodings = "kiln::onnx::encodings",
        OnnxMalformed = "kiln::onnx::malformed",
        OnnxSize = "kiln::onnx::size",
        OnnxWeight = "kiln::onnx::weight",
        Order = "kiln::order",
        OriginMissing = "kiln::origin_missing",
        PackageContext = "kiln::package::context",
        PackageEos = "kiln::package::eos",
        PackageInfo = "kiln::package::info",
        PackageJson = "kiln::package::json",
        PackageModel = "kiln::package::model",
        PackagePlace = "kiln::package::place",
        PackageReport = "kiln::package::report",
        PackageTable = "kiln::package::table",
        PartCount = "kiln::part_count",
        PartMissing = "kiln::part_missing",
        PartName = "kiln::part_name",
        QnnBinding = "kiln::qnn::binding",
        QnnDlc = "kiln::qnn::dlc",
        QnnEncoding = "kiln::qnn::encoding",
        QnnEncodingWrong = "kiln::qnn::encoding_wrong",
        QnnGraph = "kiln::qnn::graph",
        QnnName = "kiln::qnn::name",
        QnnNoEstimate = "kiln::qnn::no_estimate",
        QnnNoF16 = "kiln::qnn::no_f16",
        QnnNoFunction = "kiln::qnn::no_function",
        QnnNull = "kiln::qnn::null",
        QnnOddAnswer = "kiln::qnn::odd_answer",
        QnnOpRefused = "kiln::qnn::op_refused",
        QnnRefused = "kiln::qnn::refused",
        QnnStaticData = "kiln::qnn::static_data",
        Record = "kiln::record",
        ReferenceLogits = "kiln::reference::logits",
        ReferencePrompt = "kiln::reference::prompt",
        ReferenceTensor = "kiln::reference::tensor",
        ReferenceTokens = "kiln::reference::tokens",
        SensitivityGraph = "kiln::sensitivity::graph",
        SensitivityNothing = "kiln::sensitivity::nothing",
        SensitivityScheme = "kiln::sensitivity::scheme",
        ShardsCount = "kiln::shards::count",
        TokenizerMetadata = "kiln::tokenizer::metadata",
        TokenizerModel = "kiln::tokenizer::model",
        TokenizerNone = "kiln::tokenizer::none",
        TokenizerPre = "kiln::tokenizer::pre",
        TokenizerUnusable = "kiln::tokenizer::unusable",
        ValidateEstimate = "kiln::validate::estimate",
        ValidateMissed = "kiln::validate::missed",
        ValidateScores = "kiln::validate::scores",
        WeightsColumns = "kiln::weights::columns",
        WeightsEncoding = "kiln::weights::encoding",
        WeightsMissing = "kiln::weights::missing",
        WeightsMoments = "kiln::weights::moments",
        WeightsNotFinite = "kiln::weights::not_finite",
        WeightsPart = "kiln::weights::part",
        WeightsRange = "kiln::weights::range",
        WeightsReport = "kiln::weights::report",
        WeightsScheme = "kiln::weights::scheme",
        WeightsShape = "kiln::weights::shape",
        WeightsUnmatched = "kiln::weights::unmatched",
        WindowsText = "kiln::windows::text",
    }
    Digest {
        BundleDigest = "kiln::bundle::digest",
        CheckDiffers = "kiln::check::differs",
        FetchDigest = "kiln::fetch::digest",
        LockDiffers = "kiln::lock::differs",
        StoreCorrupt = "kiln::store::corrupt",
        StoreWindow = "kiln::store::window",
        VerifyDiffers = "kiln::verify::differs",
    }
    Tool {
        ToolFileMissing = "kiln::tool_file_missing",
        ToolMissing = "kiln::tool_missing",
    }
    Store {
        BundleCut = "kiln::bundle::cut",
        BundleForeign = "kiln::bundle::foreign",
        BundleIo = "kiln::bundle::io",
        EngineRecord = "kiln::engine::record",
        PublishForeign = "kiln::publish::foreign",
        PublishIo = "kiln::publish::io",
        PublishReceipt = "kiln::publish::receipt",
        ReportWrite = "kiln::report::write",
        StoreForeign = "kiln::store::foreign",
        StoreGone = "kiln::store::gone",
        StoreInUse = "kiln::store::in_use",
        StoreIo = "kiln::store::io",
        StoreLayout = "kiln::store::layout",
        StoreReadOnly = "kiln::store::read_only",
    }
    Interrupted {
        Cancelled = "kiln::cancelled",
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Code::of(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_text_of_its_own_and_is_read_back() {
        let mut texts = BTreeSet::new();
        for code in Code::ALL {
            let text = code.as_str();
            let rest = text.strip_prefix("kiln::").unwrap();
            let is_plain =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
            assert!(!rest.is_empty() && rest.chars().all(is_plain), "{text}");
            assert!(texts.insert(text), "{text} twice");
            assert_eq!(Code::of(text), *code);
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
        }
        assert!(texts.len() > 200);
    }

    #[test]
    fn a_code_of_a_newer_kiln_is_kept() {
        for text in ["kiln::glaze::runs", "\u{1b}[31m", ""] {
            let code: Code = serde_json::from_value(text.into()).unwrap();
            assert_eq!((code.as_str(), code.class()), (text, Class::Stage));
            assert_eq!(serde_json::to_value(&code).unwrap(), text);
        }
    }
}
