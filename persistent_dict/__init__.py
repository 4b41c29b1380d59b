"""A write-once persistent dictionary cache: compute once, keep the result, never see half of it."""

from persistent_dict._dictionary import CacheInfo
from persistent_dict.dicts import PersistentDict, WriteOncePersistentDict
from persistent_dict.errors import (
    CacheWriteWarning,
    CollisionWarning,
    ContainerError,
    CorruptEntryWarning,
    InvalidEntryError,
    InvalidKeyFileError,
    InvalidValueFileError,
    NanKeyWarning,
    NoSuchEntryCollisionError,
    NoSuchEntryError,
    PersistentDictError,
    ReadOnlyEntryError,
    UnkeyableError,
    UnloadableEntryError,
    UntrustedContainerError,
)
from persistent_dict.key_builder import ContentKeyBuilder, KeyBuilder

__version__ = "0.1.0"

__all__ = [
    "CacheInfo",
    "CacheWriteWarning",
    "CollisionWarning",
    "ContainerError",
    "ContentKeyBuilder",
    "CorruptEntryWarning",
    "InvalidEntryError",
    "InvalidKeyFileError",
    "InvalidValueFileError",
    "KeyBuilder",
    "NanKeyWarning",
    "NoSuchEntryCollisionError",
    "NoSuchEntryError",
    "PersistentDict",
    "PersistentDictError",
    "ReadOnlyEntryError",
    "UnkeyableError",
    "UnloadableEntryError",
    "UntrustedContainerError",
    "WriteOncePersistentDict",
]
