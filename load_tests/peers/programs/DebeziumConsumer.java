import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CompletableFuture;

/**
 * Debezium embedded in the cheapest honest consumer: every change is converted to JSON, as Debezium
 * does for any consumer, its text is looked at on the Java side, and nothing is stored.
 *
 * Arguments: the number of changes to read, then Debezium's properties as name=value. The password,
 * if any, is in PGPASSWORD. Ends with 0 only after it has seen so many changes.
 */
public final class DebeziumConsumer
        implements DebeziumEngine.ChangeConsumer<ChangeEvent<String, String>> {

    private final long rowCountMax;
    private final CompletableFuture<Void> end = new CompletableFuture<>();
    private long rowCount;
    private long characterCount;

    private DebeziumConsumer(long rowCountMax) {
        this.rowCountMax = rowCountMax;
    }

    @Override
    public void handleBatch(
            List<ChangeEvent<String, String>> events,
            DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
            throws InterruptedException {
        for (ChangeEvent<String, String> event : events) {
            characterCount += event.value().length();
            committer.markProcessed(event);
        }
        committer.markBatchFinished();
        rowCount += events.size();
        if (rowCount >= rowCountMax) {
            end.complete(null);
        }
    }

    private void ended(boolean isSuccess, String message, Throwable error) {
        // Without effect after the end.
        end.completeExceptionally(new IllegalStateException("ended early: " + message, error));
    }

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        properties.setProperty(
                "database.password", System.getenv().getOrDefault("PGPASSWORD", ""));
        for (String argument : List.of(arguments).subList(1, arguments.length)) {
            String[] parts = argument.split("=", 2);
            properties.setProperty(parts[0], parts[1]);
        }
        DebeziumConsumer consumer = new DebeziumConsumer(Long.parseLong(arguments[0]));
        DebeziumEngine<ChangeEvent<String, String>> engine =
                DebeziumEngine.create(Json.class)
                        .using(properties)
                        .using(consumer::ended)
                        .notifying(consumer)
                        .build();
        new Thread(engine, "debezium").start();
        int code = 0;
        try {
            consumer.end.get();
            engine.close();
        } catch (Exception error) {
            error.printStackTrace();
            code = 1;
        }
        System.out.printf("%d changes, %d characters%n", consumer.rowCount, consumer.characterCount);
        System.exit(code);
    }
}
