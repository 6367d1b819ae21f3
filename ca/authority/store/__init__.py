"""The authority's memory, where every certificate is written before it leaves.

database     what is needed of a database; the SQL that both speak
location     which database, and where its password is
sqlite       the default: a file in the state directory
postgres     for several replicas (optional: psycopg)
migrations   how the tables came to be, version by version
journal      certificates          tokens        join tokens, hashed
jwt_keys     keys and journal of JWT-SVIDs
authorities  signing certificates  signing_keys  encrypted, when replicas share them
times        seconds and datetimes
facade       ``Store``: all of it behind one door
"""

from ca.authority.store.facade import Store
from ca.authority.store.journal import JournalEntry
from ca.authority.store.jwt_keys import JwtRecord
from ca.authority.store.tokens import TokenAlreadyUsed

__all__ = ["JournalEntry", "JwtRecord", "Store", "TokenAlreadyUsed"]
