"""Redis' error replies as errors of idagg."""

from __future__ import annotations

import re

from idagg.errors import (
    FencedError,
    HalfDoneError,
    LoginRefusedError,
    OtherRegimeError,
    StoreAwayError,
    StoreError,
    StoreRefusedError,
    UnknownRefusalError,
    WrongTypeError,
)

# "Not now"; whether to ask again is the caller's to decide.
_NOT_NOW = {
    "LOADING": "is still loading its data, and nothing is counted until it has",
    "READONLY": "takes no writes, it is a replica, and nothing is counted: give --redis-url its primary",
    "MASTERDOWN": "takes no writes, its master is down, and nothing is counted: give --redis-url the primary",
    "UNBLOCKED": "takes no writes any more, it became a replica: the last ids may be counted",
    "NOREPLICAS": "takes no writes, it has fewer replicas than its min-replicas-to-write, and nothing is "
    "counted in it: start or mend the replicas, or lower that",
    "CLUSTERDOWN": "is part of a cluster that is down, and nothing is counted in it: start the missing "
    "masters, and set cluster-require-full-coverage no",
    "DENIED": "is in protected mode and answers only its own machine, and nothing is counted: give it a "
    "password (requirepass), and put it into --redis-url",
}
_LOGIN = {
    "NOAUTH": "wants a password, and nothing is counted: put it into --redis-url",
    "WRONGPASS": "refuses the password or the user, and nothing is counted: mend them in --redis-url",
}
# What only a node of a cluster says.
_ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CROSSSLOT")
# What servers before ACLs, and some hosted ones, say of a password in place of WRONGPASS.
_PASSWORD = ("username-password pair", "invalid password", "without any password configured")
# What a user's missing permission is called in the middle of a script, by Redis and by Valkey.
_DENIED = ("user executing the script can't", "ACL failure in script")


def unreachable(where: str, why: str) -> StoreAwayError:
    return StoreAwayError(f"Redis at {where} cannot be reached: {why}")


def not_permitted(where: str, what: str) -> StoreAwayError:
    """``what`` in the words of ACL SETUSER."""
    return StoreAwayError(
        f"Redis at {where} does not permit this user what counting needs, and nothing is counted: "
        f"ACL SETUSER with {what}"
    )


def away(where: str, reply: str) -> StoreAwayError:
    """An error reply to what every server answers: it is of no use now, whatever it says."""
    error = refusal(where, reply)
    return error if isinstance(error, StoreAwayError) else StoreAwayError(str(error))


def refusal(where: str, reply: str) -> StoreError:
    """An error reply, code and all, as the error to raise."""
    if "Error running script" in reply:  # Redis 6.2's, around what a command in the script was answered
        reply = reply.rpartition(": -")[2]
    if any(part in reply for part in _DENIED):
        return HalfDoneError(
            f"Redis at {where} does not permit this user any more what counting needs: the last batch is "
            "counted in part, its hits can be missing; `idagg check` names what has to be permitted"
        )
    code, _, rest = reply.partition(" ")
    if "unauthenticated" in rest:  # said in place of NOAUTH to commands of more than ten words
        code = "NOAUTH"
    elif any(part in reply for part in _PASSWORD):
        code = "WRONGPASS"
    if code == "NOPERM":
        command = re.search(r"run the '(\S+)' command", rest)
        return not_permitted(where, f"+{command[1]}" if command else rest)
    if code in _LOGIN:
        return LoginRefusedError(f"Redis at {where} {_LOGIN[code]}")
    if code in ("ASK", "TRYAGAIN"):
        return StoreAwayError(
            f"Redis at {where} hands a slot to another node of its cluster, and nothing is counted in it "
            "meanwhile"
        )
    if code in _ELSEWHERE:
        return StoreAwayError(
            f"Redis at {where} is a node of a cluster, and nothing is counted: "
            "give --redis-url as redis+cluster:// or rediss+cluster://"
        )
    if "max number of clients" in reply:
        return StoreAwayError(
            f"Redis at {where} has as many clients as its maxclients lets it have, and nothing is counted: "
            "raise it"
        )
    if code in _NOT_NOW:
        return StoreAwayError(f"Redis at {where} {_NOT_NOW[code]}")
    if "unknown command" in reply and "'eval" in reply.lower():
        return StoreAwayError(
            f"Redis at {where} runs no scripts, and nothing is counted: if it is a sentinel, give "
            "--redis-url as redis+sentinel://HOST/SERVICE"
        )
    if code == "OOM":
        return StoreRefusedError(f"Redis at {where} is out of memory (maxmemory)")
    if code == "FENCED":
        return FencedError(f"another leader has taken over (epoch {rest})", int(rest))
    if code == "REGIME":
        number, shards = map(int, rest.split())
        return OtherRegimeError(
            f"Redis at {where} spreads ids over {shards} shards now, and counted none of this batch",
            number,
            shards,
        )
    if code == "AHEAD":
        return StoreAwayError(
            f"Redis at {where} has not come to the window with which another number of shards begins"
        )
    if code == "PLANNED":
        return StoreAwayError(
            f"Redis at {where} has a change of --shards or --window that no leader has announced yet: it "
            "takes ids once one has"
        )
    if code == "LEADERLESS":
        return StoreAwayError(
            f"Redis at {where} has a shard that no leader has been at: it takes ids once one has"
        )
    if code == "SCHEMA":
        return StoreRefusedError(
            f"Redis at {where} holds what another version of idagg wrote (schema {rest}): "
            "run that version here, or give this one a --namespace of its own"
        )
    if code == "DAMAGED":
        return StoreRefusedError(f"Redis at {where} is damaged: {rest}")
    if code == "DIFFERS" and rest.rpartition(" ")[2].isdecimal():
        name, _, value = rest.partition(" ")
        what, flag = {
            "length": (f"counts in windows of {value} s", "--window"),
            "exact_limit": (f"counts exactly up to {value} ids a window", "--exact-limit"),
        }[name]
        return StoreRefusedError(
            f"Redis at {where} {what} for another instance: "
            f"give this one the same {flag}, or a --namespace of its own"
        )
    unknown = WrongTypeError if code == "WRONGTYPE" else UnknownRefusalError
    return unknown(f"Redis at {where} refused: {reply}")
