//! Wire messages and blocking client of the Highwater volume socket.
