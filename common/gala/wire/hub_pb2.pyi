from gala.wire import gossip_pb2 as _gossip_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HubFrame(_message.Message):
    __slots__ = ("contribution", "parameters", "hello", "welcome", "refusal", "want", "taken", "heartbeat", "farewell")
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    contribution: HubChunk
    parameters: HubChunk
    hello: HubHello
    welcome: HubWelcome
    refusal: _gossip_pb2.Refusal
    want: Want
    taken: Taken
    heartbeat: HubHeartbeat
    farewell: _gossip_pb2.Farewell
    def __init__(self, contribution: _Optional[_Union[HubChunk, _Mapping]] = ..., parameters: _Optional[_Union[HubChunk, _Mapping]] = ..., hello: _Optional[_Union[HubHello, _Mapping]] = ..., welcome: _Optional[_Union[HubWelcome, _Mapping]] = ..., refusal: _Optional[_Union[_gossip_pb2.Refusal, _Mapping]] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ..., heartbeat: _Optional[_Union[HubHeartbeat, _Mapping]] = ..., farewell: _Optional[_Union[_gossip_pb2.Farewell, _Mapping]] = ...) -> None: ...

class HubHello(_message.Message):
    __slots__ = ("run_uid", "rank", "incarnation", "epoch", "schema_hash", "num_elements", "precision", "contribution_bytes")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_HASH_FIELD_NUMBER: _ClassVar[int]
    NUM_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    rank: int
    incarnation: int
    epoch: int
    schema_hash: str
    num_elements: int
    precision: _gossip_pb2.Precision
    contribution_bytes: int
    def __init__(self, run_uid: _Optional[str] = ..., rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., schema_hash: _Optional[str] = ..., num_elements: _Optional[int] = ..., precision: _Optional[_Union[_gossip_pb2.Precision, str]] = ..., contribution_bytes: _Optional[int] = ...) -> None: ...

class HubWelcome(_message.Message):
    __slots__ = ("run_uid", "incarnation", "epoch", "received", "held")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    incarnation: int
    epoch: int
    received: int
    held: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run_uid: _Optional[str] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., received: _Optional[int] = ..., held: _Optional[_Iterable[int]] = ...) -> None: ...

class HubHeader(_message.Message):
    __slots__ = ("num_bytes", "version", "steps", "progress", "finished")
    class ProgressEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    version: int
    steps: int
    progress: _containers.ScalarMap[int, int]
    finished: bool
    def __init__(self, num_bytes: _Optional[int] = ..., version: _Optional[int] = ..., steps: _Optional[int] = ..., progress: _Optional[_Mapping[int, int]] = ..., finished: bool = ...) -> None: ...

class HubChunk(_message.Message):
    __slots__ = ("serial", "index", "count", "header", "payload")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    serial: int
    index: int
    count: int
    header: HubHeader
    payload: bytes
    def __init__(self, serial: _Optional[int] = ..., index: _Optional[int] = ..., count: _Optional[int] = ..., header: _Optional[_Union[HubHeader, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("serial",)
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    serial: int
    def __init__(self, serial: _Optional[int] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("serial", "refused")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    serial: int
    refused: _gossip_pb2.Reason
    def __init__(self, serial: _Optional[int] = ..., refused: _Optional[_Union[_gossip_pb2.Reason, str]] = ...) -> None: ...

class HubHeartbeat(_message.Message):
    __slots__ = ("progress",)
    class ProgressEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: _containers.ScalarMap[int, int]
    def __init__(self, progress: _Optional[_Mapping[int, int]] = ...) -> None: ...
