from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    FLOAT32: _ClassVar[Precision]
    BFLOAT16: _ClassVar[Precision]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    WRONG_RUN: _ClassVar[Reason]
    WRONG_SCHEMA: _ClassVar[Reason]
    WRONG_PRECISION: _ClassVar[Reason]
    WRONG_RECEIVER: _ClassVar[Reason]
    STALE_EPOCH: _ClassVar[Reason]
    STALE_INCARNATION: _ClassVar[Reason]
    NOT_MY_PEER: _ClassVar[Reason]
    MALFORMED: _ClassVar[Reason]
    NOT_FINITE: _ClassVar[Reason]
    TOO_BUSY: _ClassVar[Reason]
    NOTHING_YET: _ClassVar[Reason]
    RESUMING: _ClassVar[Reason]

class Leaving(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEAVING_UNSPECIFIED: _ClassVar[Leaving]
    FINISHED: _ClassVar[Leaving]
    STOPPED: _ClassVar[Leaving]
    REKNIT: _ClassVar[Leaving]
PRECISION_UNSPECIFIED: Precision
FLOAT32: Precision
BFLOAT16: Precision
REASON_UNSPECIFIED: Reason
WRONG_RUN: Reason
WRONG_SCHEMA: Reason
WRONG_PRECISION: Reason
WRONG_RECEIVER: Reason
STALE_EPOCH: Reason
STALE_INCARNATION: Reason
NOT_MY_PEER: Reason
MALFORMED: Reason
NOT_FINITE: Reason
TOO_BUSY: Reason
NOTHING_YET: Reason
RESUMING: Reason
LEAVING_UNSPECIFIED: Leaving
FINISHED: Leaving
STOPPED: Leaving
REKNIT: Leaving

class Frame(_message.Message):
    __slots__ = ("hello", "chunk", "heartbeat", "farewell", "welcome", "refusal", "ack", "loan")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    LOAN_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    chunk: Chunk
    heartbeat: Heartbeat
    farewell: Farewell
    welcome: Welcome
    refusal: Refusal
    ack: Ack
    loan: Loan
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., loan: _Optional[_Union[Loan, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("run_uid", "rank", "receiver", "incarnation", "epoch", "schema_hash", "num_elements", "precision", "memory")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    NUM_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    rank: int
    receiver: int
    incarnation: int
    epoch: int
    schema_hash: str
    num_elements: int
    precision: Precision
    memory: SharedMemory
    def __init__(self, run_uid: _Optional[str] = ..., rank: _Optional[int] = ..., receiver: _Optional[int] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., schema_hash: _Optional[str] = ..., num_elements: _Optional[int] = ..., precision: _Optional[_Union[Precision, str]] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("process", "descriptor", "token")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    process: int
    descriptor: int
    token: bytes
    def __init__(self, process: _Optional[int] = ..., descriptor: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("run_uid", "rank", "incarnation", "epoch", "progress", "accepted", "sees_memory")
    class ProgressEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    SEES_MEMORY_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    rank: int
    incarnation: int
    epoch: int
    progress: _containers.ScalarMap[int, int]
    accepted: int
    sees_memory: bool
    def __init__(self, run_uid: _Optional[str] = ..., rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., progress: _Optional[_Mapping[int, int]] = ..., accepted: _Optional[int] = ..., sees_memory: bool = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    detail: str
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("num_bytes", "round", "weight", "age_seconds", "progress")
    class ProgressEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    round: int
    weight: float
    age_seconds: float
    progress: _containers.ScalarMap[int, int]
    def __init__(self, num_bytes: _Optional[int] = ..., round: _Optional[int] = ..., weight: _Optional[float] = ..., age_seconds: _Optional[float] = ..., progress: _Optional[_Mapping[int, int]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("version", "index", "count", "header", "payload")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    version: int
    index: int
    count: int
    header: Header
    payload: bytes
    def __init__(self, version: _Optional[int] = ..., index: _Optional[int] = ..., count: _Optional[int] = ..., header: _Optional[_Union[Header, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Loan(_message.Message):
    __slots__ = ("version", "header", "descriptor", "serial")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    version: int
    header: Header
    descriptor: int
    serial: int
    def __init__(self, version: _Optional[int] = ..., header: _Optional[_Union[Header, _Mapping]] = ..., descriptor: _Optional[int] = ..., serial: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("version", "progress")
    class ProgressEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    version: int
    progress: _containers.ScalarMap[int, int]
    def __init__(self, version: _Optional[int] = ..., progress: _Optional[_Mapping[int, int]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("version", "refused")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    version: int
    refused: Reason
    def __init__(self, version: _Optional[int] = ..., refused: _Optional[_Union[Reason, str]] = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("why", "progress")
    class ProgressEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    WHY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    why: Leaving
    progress: _containers.ScalarMap[int, int]
    def __init__(self, why: _Optional[_Union[Leaving, str]] = ..., progress: _Optional[_Mapping[int, int]] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("run_uid", "rank", "schema_hash", "incarnation")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    rank: int
    schema_hash: str
    incarnation: int
    def __init__(self, run_uid: _Optional[str] = ..., rank: _Optional[int] = ..., schema_hash: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class StateChunk(_message.Message):
    __slots__ = ("num_bytes", "offset", "payload", "refusal")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    offset: int
    payload: bytes
    refusal: Refusal
    def __init__(self, num_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., payload: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
