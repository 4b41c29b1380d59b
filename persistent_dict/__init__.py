"""A write-once persistent dictionary cache: compute once, keep the result, never see half of it."""

from persistent_dict._computing import Explanation
from persistent_dict._dictionary import CacheInfo
from persistent_dict._memoized import FunctionInfo
from persistent_dict._steps import Outcome
from persistent_dict.dicts import PersistentDict, WriteOncePersistentDict
from persistent_dict.errors import (
    CacheWriteWarning,
    CollisionWarning,
    ContainerError,
    CorruptEntryWarning,
    CyclicReferenceError,
    InvalidEntryError,
    InvalidKeyFileError,
    InvalidValueFileError,
    MissingReferenceError,
    NameTakenError,
    NanKeyWarning,
    NoSuchEntryCollisionError,
    NoSuchEntryError,
    PersistentDictError,
    ReadOnlyEntryError,
    RecursiveComputationError,
    StaleStoreError,
    UnkeyableError,
    UnloadableEntryError,
    UnreadableStoreError,
    UntrustedContainerError,
)
from persistent_dict.key_builder import ContentKeyBuilder, KeyBuilder
from persistent_dict.memoize import file_checksum, memoize  # `memoize` is the function from here on
from persistent_dict.readonly import open_readonly
from persistent_dict.references import References
from persistent_dict.transactions import TransactionResult, transaction

__version__ = "0.1.0"

__all__ = [
    "CacheInfo",
    "CacheWriteWarning",
    "CollisionWarning",
    "ContainerError",
    "ContentKeyBuilder",
    "CorruptEntryWarning",
    "CyclicReferenceError",
    "Explanation",
    "FunctionInfo",
    "InvalidEntryError",
    "InvalidKeyFileError",
    "InvalidValueFileError",
    "KeyBuilder",
    "MissingReferenceError",
    "NameTakenError",
    "NanKeyWarning",
    "NoSuchEntryCollisionError",
    "NoSuchEntryError",
    "Outcome",
    "PersistentDict",
    "PersistentDictError",
    "ReadOnlyEntryError",
    "RecursiveComputationError",
    "References",
    "StaleStoreError",
    "TransactionResult",
    "UnkeyableError",
    "UnloadableEntryError",
    "UnreadableStoreError",
    "UntrustedContainerError",
    "WriteOncePersistentDict",
    "file_checksum",
    "memoize",
    "open_readonly",
    "transaction",
]
