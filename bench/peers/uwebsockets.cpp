// uWebSockets as its own examples use it: echo, or publish to a topic that everybody is subscribed to.
#include <App.h>

#include <cstdlib>
#include <string_view>

int main(int count, char **arguments) {
    if (count < 3) {
        return 64;
    }
    struct PerSocket {};
    bool fanout = std::string_view(arguments[2]) == "fanout";
    uWS::App app;
    app.ws<PerSocket>("/*", {
        .compression = uWS::DISABLED,
        .maxPayloadLength = 64 * 1024,
        .maxBackpressure = 16 * 1024 * 1024,
        .open = [fanout](auto *socket) {
            if (fanout) {
                socket->subscribe("all");
            }
        },
        .message = [fanout, &app](auto *socket, std::string_view message, uWS::OpCode code) {
            if (fanout) {
                app.publish("all", message, code);
            } else {
                socket->send(message, code);
            }
        },
    });
    app.listen("127.0.0.1", std::atoi(arguments[1]), [](auto *listener) {
        if (!listener) {
            std::exit(1);
        }
    });
    app.run();
}
