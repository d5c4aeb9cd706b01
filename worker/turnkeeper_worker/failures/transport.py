"""Words about the network: asked for last, because any sentence may mention it."""

from turnkeeper.errors import ErrorKind, Situation
from turnkeeper_worker.failures.gates import RETRY, STOP, PhraseRule, PhraseTable, silent, transport
from turnkeeper_worker.failures.words import phrases

NETWORK = PhraseTable(
    PhraseRule(
        "first event late",
        ErrorKind.STARTUP_TIMEOUT,
        RETRY,
        transport,
        phrases("first token | first event | first chunk | first byte"),
    ),
    PhraseRule(
        "stream silent",
        ErrorKind.STREAM_SILENCE_TIMEOUT,
        RETRY,
        transport,
        phrases(
            """
            idle timeout waiting for | idle timeout | stream idle | no data received for | no events for
            stream stalled | stream … silent
            """
        ),
    ),
    # Ours: the phrase is how a caller's own deadline reads, and the budget that ran out is the caller's.
    PhraseRule(
        "own deadline",
        ErrorKind.TIMEOUT,
        STOP,
        silent,
        phrases("context deadline exceeded"),
        Situation.DEADLINE,
    ),
    PhraseRule(
        "interrupted",
        ErrorKind.GENERIC,
        STOP,
        silent,
        phrases("chat interrupted | request interrupted | operation interrupted"),
        Situation.CANCELLED,
    ),
    PhraseRule(
        "network words",
        ErrorKind.TIMEOUT,
        RETRY,
        transport,
        phrases(
            """
            timeout | timed out | time out | took too long | temporarily unavailable
            service unavailable | unavailable | bad gateway | gateway timeout | connection reset
            connection refused | connection aborted | connection closed | connection lost
            connection error | connection terminated | connection was forcibly closed
            connection attempts failed | connection … closed | cannot connect to host
            could not connect | failed to connect | closed connection | closed network connection
            server disconnected | disconnected | disconnect/reset | remote end closed | peer closed
            hung up | hang up | socket closed | premature close | econnreset | econnrefused
            econnaborted | etimedout | enotfound | eai_again | epipe | und_err_socket | broken pipe
            eof | unexpected end of json | unexpected end of | incomplete chunked read
            incomplete message | incompleteread | error decoding response body | error sending request
            error reading | transport error | network error | fetch failed | failed to fetch
            network is unreachable | no route to host | host is unreachable | no such host
            name or service not known | nodename nor servname | name resolution | getaddrinfo | dns
            client conn | client connection | goaway | http2 | h2 protocol error | stream closed
            stream ended | stream … ended without | stream … closed before | stream was reset
            stream error | without finish_reason | without a terminal event | closed before message_stop
            closed before | closed unexpectedly | upstream connect error | bad record mac
            tls handshake | ssl handshake
            """
        ),
    ),
    PhraseRule("socket ended", ErrorKind.TIMEOUT, RETRY, silent, phrases("terminated | aborted")),
    PhraseRule(
        "server words",
        ErrorKind.GENERIC,
        RETRY,
        silent,
        phrases(
            """
            server error | internal error | server had an error | an error occurred while processing
            error occurred while processing | finish_reason: error | something went wrong
            unexpectedly stopped | provider returned error | empty response | no output
            """
        ),
    ),
)
