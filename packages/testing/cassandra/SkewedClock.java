import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.cassandra.utils.Clock;

/**
 * Cassandra's clock of wall time, off by as many milliseconds as a file says; elapsed time is what it is, as on a machine
 * whose clock is set.
 */
public final class SkewedClock implements Clock {
    private static final Path FILE = Path.of(System.getProperty("skewed_clock.file"));
    private volatile long skew;

    public SkewedClock() {
        read();
        Thread reader = new Thread(this::follow, "SkewedClock");
        reader.setDaemon(true);
        reader.start();
    }

    private void follow() {
        try {
            for (;;) {
                Thread.sleep(50);
                read();
            }
        } catch (InterruptedException end) {
            Thread.currentThread().interrupt();
        }
    }

    private void read() {
        try {
            skew = Long.parseLong(Files.readString(FILE).trim());
        } catch (Exception halfWritten) {
            // The next look will do.
        }
    }

    @Override
    public long currentTimeMillis() {
        return System.currentTimeMillis() + skew;
    }

    @Override
    public long nanoTime() {
        return System.nanoTime();
    }
}
