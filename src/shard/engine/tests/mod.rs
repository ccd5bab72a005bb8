//! Tests with real sockets on the loopback interface. Each of the trap tests fails without the guard it is named after.

mod basics;
mod chaos;
mod end;
mod limits;
mod park;
mod receives;
mod sends;
mod slots;
mod support;
