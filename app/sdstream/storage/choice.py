"""Which database and which image store the settings choose."""

from __future__ import annotations

from sdstream.settings import Settings
from sdstream.storage.files import ImageFolder
from sdstream.storage.ports import Database, ImageStore
from sdstream.storage.sqlite import SqliteDatabase


def database_of(settings: Settings) -> Database:
    """Return the database of the settings, which is not open yet."""
    return SqliteDatabase(settings.data_dir)


def images_of(settings: Settings) -> ImageStore:
    """Return the image store of the settings, which is not open yet."""
    return ImageFolder(settings.data_dir)
