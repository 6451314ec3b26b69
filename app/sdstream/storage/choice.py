"""The database and the image store that the settings select."""

from __future__ import annotations

from importlib import import_module, util

from sdstream.settings import Settings
from sdstream.storage.files import ImageFolder
from sdstream.storage.ports import Database, ImageStore, StoreError
from sdstream.storage.sqlite import SqliteDatabase


def database_of(settings: Settings) -> Database:
    """Return the database of the settings, which is not open yet.

    Raises:
        StoreError: The database needs an extra that is not installed, or its URL is invalid.
    """
    if settings.database is None:
        return SqliteDatabase(settings.data_dir)
    _check_extra("postgres", "psycopg", "--database")
    module = import_module("sdstream.storage.postgres")
    database: Database = module.PostgresDatabase(settings.database.get_secret_value())
    return database


def images_of(settings: Settings) -> ImageStore:
    """Return the image store of the settings, which is not open yet.

    Raises:
        StoreError: The image store needs an extra that is not installed.
    """
    if settings.images is None:
        return ImageFolder(settings.data_dir)
    _check_extra("s3", "boto3", "--images")
    images: ImageStore = import_module("sdstream.storage.s3").ImageBucket(settings.images)
    return images


def _check_extra(extra: str, package: str, flag: str) -> None:
    """Raise StoreError if an optional extra is missing."""
    if util.find_spec(package) is None:
        raise StoreError(f"{flag} needs an extra: pip install 'sdstream[{extra}]'")
